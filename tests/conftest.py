"""How the tests share two processes: files stay whole, as their fixtures do, and those on the shared Ray together.

The latter say so themselves: `pytestmark = pytest.mark.xdist_group("ray")`.
"""

import logging
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


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that logs as JSON takes the project's log for its process, and caplog hears nothing from then on."""
    logger = logging.getLogger("clipmill")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


_LONG = ("ray", "test_training_resume", "test_training_layouts", "test_caption_merge", "test_bad_clips")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that take minutes start first, so that no process waits for the other at the end."""

    def place(item: pytest.Item) -> int:
        (group,) = item.get_closest_marker("xdist_group").args
        return _LONG.index(group) if group in _LONG else len(_LONG)

    items.sort(key=place)
