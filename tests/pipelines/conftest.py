"""One Ray and one S3 server for all tests of this folder: each costs seconds to start."""

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Cluster:
    """A Ray with two CPUs, its dashboard, and the S3 server that its workers are told of."""

    dashboard: str
    s3_port: int
    address: str


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Two CPUs, as small as a machine gets on which everything must run."""
    s3_port, dashboard_port = _free_port(), _free_port()
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
    import ray

    from pipelines.cluster import start

    start(2, 5, object_store_memory=512 << 20, include_dashboard=True, dashboard_port=dashboard_port)
    address = ray.get_runtime_context().gcs_address
    yield Cluster(f"http://127.0.0.1:{dashboard_port}", s3_port, address)
    ray.shutdown()


@pytest.fixture(scope="session")
def s3(ray_cluster: Cluster) -> Iterator[Any]:
    """An fsspec file system on an S3 server of our own, with the bucket `films`."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=ray_cluster.s3_port, verbose=False)
    server.start()
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.mkdir("films")
    yield fs
    server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
