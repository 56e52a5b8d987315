"""A real Prometheus reads what a job on a real Ray exports; every panel of the Grafana dashboard finds its numbers."""

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import yaml

import pipelines.graph
from pipelines.curate import curate
from pipelines.preflight import Pool
from pipelines.spec import parse_spec
from tests.media import film
from tests.pipelines.conftest import Cluster
from tests.pipelines.service_rig import free_port
from tests.pipelines.test_service_jobs import write_films

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "clipmill.json"
ELSEWHERE = ("ray_node_gpus_utilization", "ray_data_")
"""Not in the first test: this machine has no GPU; the second test is about Ray Data's own numbers."""
Query = Callable[[str], list[dict[str, Any]]]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30):
            return True
    except OSError:
        return False


@pytest.fixture
def query(ray_cluster: Cluster, tmp_path: Path) -> Iterator[Query]:
    """Asks a Prometheus that reads the test's Ray."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.fail("no Prometheus on this machine: apt-get install prometheus (deploy/system-packages.sh does it)")
    target, port = f"127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}", free_port()
    config = {"global": {"scrape_interval": "1s"}}
    config |= {"scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [target]}]}]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [binary, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def ask(expression: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    deadline = time.monotonic() + 60
    while not _answers(f"http://127.0.0.1:{port}/-/ready"):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    yield ask
    process.kill()
    process.wait()


def test_the_dashboard_finds_a_jobs_numbers(query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_JOB", "measured")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "good.mp4").write_bytes(film("bikes.mp4").read_bytes())
    (tmp_path / "films" / "bad.mp4").write_text("no film")
    data = {"input": {"uris": [str(tmp_path / "films")]}, "output": str(tmp_path / "out"), "scores": {"text": "off"}}
    dataset = curate(parse_spec(data | {"clips": {"min": "1 s", "max": "4 s"}}, "test"))
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    unseen = [each.replace("$dataset", "measured") for each in expressions]
    unseen = [each for each in unseen if not any(name in each for name in ELSEWHERE)]
    deadline = time.monotonic() + 120  # Ray's processes report at their own times, and a gauge is gone soon after that
    while unseen := [each for each in unseen if not query(f"last_over_time(({each})[5m:1s])")]:
        assert time.monotonic() < deadline, (unseen, query('{__name__=~"ray_clipmill.*"}'))
        time.sleep(0.5)

    def value(expression: str) -> float:
        return float(query(expression)[0]["value"][1])

    row = dataset.sources().to_pylist()[1]
    assert value('ray_clipmill_sources_total{dataset="measured",outcome="ok"}') == 1
    assert value('ray_clipmill_errors_total{dataset="measured",reason="not_a_video"}') == 1
    assert value('ray_clipmill_clips_total{dataset="measured"}') == row["clips"]
    assert value('ray_clipmill_kept_seconds_total{dataset="measured"}') == pytest.approx(row["kept_s"])
    assert value('ray_clipmill_stage_seconds_total{dataset="measured",stage="cuts"}') == pytest.approx(row["cuts_s"])


class HeldActor:
    """A stage that is at work until there is a file."""

    def __init__(self, release: str, *_: Any) -> None:
        self._release = Path(release)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        while not self._release.exists():
            time.sleep(0.1)
        yield batch


def test_the_dashboard_shows_what_waits_before_each_stage(
    query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage holds the job up until the dashboard shows that more waits before it than before the writer."""
    monkeypatch.setenv("CLIPMILL_JOB", "queued")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    release = tmp_path / "release"
    monkeypatch.setattr(pipelines.graph, "_scoring", lambda *_: [(HeldActor, (str(release),), Pool(1, 0.3))])
    spec = {"input": {"uris": [str(write_films(tmp_path / "films", 6))]}, "output": str(tmp_path / "out")}
    resources = {"source_actors": 1, "source_cpus": 0.5}
    panels = {each["title"]: each["targets"][0]["expr"] for each in json.loads(DASHBOARD.read_text())["panels"]}

    def shown(title: str) -> dict[str, float]:
        found = query(panels[title].replace("$dataset", "queued"))
        return {each["metric"]["stage"]: float(each["value"][1]) for each in found}

    waiting: dict[str, float] = {}

    def watch() -> None:
        deadline = time.monotonic() + 200
        try:
            while not waiting.get("Held", 0) > waiting.get("Writer", 0) and time.monotonic() < deadline:
                waiting.update(shown("Waiting before each stage"))
                time.sleep(0.5)
            waiting["GPUs"] = max(shown("GPUs held by stage").values(), default=-1)
        finally:
            release.touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    curate(parse_spec(spec | {"scores": {"text": "off"}, "resources": resources}, "test"))
    watcher.join()
    assert waiting.keys() == {"Source", "Held", "Writer", "GPUs"}
    assert waiting["Held"] > waiting["Writer"]
    assert waiting["GPUs"] == 0
