"""How the tests share two processes: those that share one Ray stay together, so that it is started once."""

import pytest

_LONG = ("test_service_jobs", "test_train_on_ray")  # each minutes, on a Ray of its own: not left to the end


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group by file (fixtures are shared within one), and what uses the shared Ray into one group, the first."""

    def group(item: pytest.Item) -> str:
        return "ray" if "ray_cluster" in getattr(item, "fixturenames", ()) else item.path.stem

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: (group(item) != "ray", group(item) not in _LONG))
