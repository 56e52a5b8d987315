"""How the tests share two processes: those that share one Ray stay together, so that it is started once."""

import pytest

_LONG = ("test_service_jobs", "test_train_on_ray")  # each minutes, on a Ray of its own: not left to the end


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group by file (fixtures are shared within one); files that use the shared Ray are one group, the first."""
    shared = {item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in shared else item.path.stem))
    items.sort(key=lambda item: (item.path not in shared, item.path.stem not in _LONG))
