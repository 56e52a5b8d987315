"""How the tests share two processes: those that need Ray stay together, so that it is started once."""

from pathlib import Path

import pytest

_ROOT = Path(__file__).parent
_ON_RAY = ("pipelines", "workers")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group by file (fixtures are shared within one), and everything on Ray into one group, which starts first."""
    for item in items:
        folder = item.path.relative_to(_ROOT).parts[0]
        item.add_marker(pytest.mark.xdist_group("ray" if folder in _ON_RAY else item.path.stem))
    items.sort(key=lambda item: item.path.relative_to(_ROOT).parts[0] not in _ON_RAY)
