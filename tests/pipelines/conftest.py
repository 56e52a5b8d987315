"""One Ray and one S3 server for all tests of this folder: each costs seconds to start."""

import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.service_rig import free_port


@dataclass(frozen=True)
class Cluster:
    """A Ray with two CPUs, its dashboard, and the S3 server that its workers are told of."""

    dashboard: str
    s3_port: int
    address: str


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Two CPUs, as small as a machine gets on which everything must run."""
    s3_port = free_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        # Ray Jobs start `python` as the shell finds it, as if this environment were activated.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ |= {"RAY_metrics_report_interval_ms": "1000"}  # not 10 s, for which the tests of metrics would wait
    import ray

    from pipelines.cluster import end, start

    for attempt in range(5):  # with a port of its own each time: a dashboard that came up late keeps the one before
        dashboard_port = free_port()
        try:
            start(2, 1, object_store_memory=512 << 20, include_dashboard=True, dashboard_port=dashboard_port)
            break
        except Exception as error:  # Ray raises plain Exception
            if attempt == 4 or "timed out during startup" not in str(error):
                raise
    address = ray.get_runtime_context().gcs_address
    yield Cluster(f"http://127.0.0.1:{dashboard_port}", s3_port, address)
    end()


def _on_ray(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("xdist_group").args == ("ray",)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End Ray behind its last test, not with the process: the other tests need the memory and the time."""
    if _on_ray(item) and not _on_ray(nextitem):
        from pipelines.cluster import end

        end()


class Faults:
    """A WSGI layer that answers some requests as a busy object store does. `share` of them; 0: none."""

    def __init__(self, app: Any) -> None:
        self._app, self._random = app, random.Random(0)
        self.share, self.seen = 0.0, Counter[str]()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        kind = self._random.choice(["slow", "SlowDown", "InternalError"]) if self._random.random() < self.share else ""
        if kind:
            self.seen[kind] += 1
        if kind == "slow":
            time.sleep(0.5)
        elif kind:
            status = "503 Slow Down" if kind == "SlowDown" else "500 Internal Server Error"
            start_response(status, [("Content-Type", "application/xml"), ("Connection", "close")])
            return [f"<Error><Code>{kind}</Code><Message>Please reduce your request rate.</Message></Error>".encode()]
        return self._app(environ, start_response)


@pytest.fixture(scope="session")
def s3_faults(ray_cluster: Cluster) -> Iterator[Faults]:
    """An S3 server of our own, whose faults can be switched on."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", ray_cluster.s3_port, faults, True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield faults
    server.shutdown()


@pytest.fixture(scope="session")
def s3(s3_faults: Faults) -> Any:
    """An fsspec file system on that server, with the bucket `films`."""
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.mkdir("films")
    return fs
