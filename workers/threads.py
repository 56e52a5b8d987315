"""How many threads the libraries of a worker process use: as many as it has CPUs."""

import cv2


def limit_threads(count: int) -> None:
    """Set it for PyTorch and OpenCV, in this process."""
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)
