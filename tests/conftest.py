"""How the tests share two processes: files stay whole, as their fixtures do, and those on the shared Ray together.

The latter say so themselves: `pytestmark = pytest.mark.xdist_group("ray")`.
"""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on Ray, which take longest, start first."""
    items.sort(key=lambda item: ("ray",) not in [marker.args for marker in item.iter_markers("xdist_group")])
