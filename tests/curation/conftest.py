"""Models that take seconds to load, once per session."""

import pytest
import torch

from curation.conse import ConseSimilarity


@pytest.fixture(scope="session")
def conse() -> ConseSimilarity:
    """The packaged image-text model, on one thread."""
    torch.set_num_threads(1)
    return ConseSimilarity()
