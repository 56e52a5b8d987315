"""How the tests share two processes: files stay whole, as their fixtures do, and those on the shared Ray together.

The latter say so themselves: `pytestmark = pytest.mark.xdist_group("ray")`.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser import chromium


@pytest.fixture(scope="session")
def one_browser() -> Iterator[Browser]:
    """One for the process: Playwright allows no second one while the first is open."""
    with chromium() as found:
        yield found


@pytest.fixture
def browser(one_browser: Browser) -> Iterator[Browser]:
    """Without pages of earlier tests, which would go on working."""
    yield one_browser
    for context in one_browser.contexts:
        context.close()


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on Ray, which take longest, start first."""
    items.sort(key=lambda item: ("ray",) not in [marker.args for marker in item.iter_markers("xdist_group")])
