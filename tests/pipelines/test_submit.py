"""A spec sent to a cluster through Ray Jobs runs there with this checkout's code, and can be watched and stopped."""

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.dataset import Dataset
from pipelines.ray_jobs import RayJobs, RayUnreachable
from pipelines.spec import Spec, parse_spec
from tests.media import film
from tests.pipelines.conftest import Cluster

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]  # wall seconds on a busy machine


def clipmill(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_a_job_is_submitted_followed_and_done(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "bikes.mp4").write_bytes(film("bikes.mp4").read_bytes())
    spec = tmp_path / "job.yaml"
    spec.write_text("input: {uris: films}\noutput: out\nclips: {min: 1 s, max: 4 s}\nscores: {text: off}\n")
    monkeypatch.chdir(tmp_path)
    done = clipmill("submit", str(spec), "--ray", "--address", ray_cluster.dashboard, "--wait")
    assert done.exit_code == 0, done.output
    job, *log = done.output.splitlines()
    assert any("1/1 videos" in line for line in log)
    dataset = Dataset(tmp_path / "out")  # relative paths were made absolute before they were sent
    assert dataset.sources()["status"].to_pylist() == ["ok"]
    assert dataset.clips().num_rows > 0
    assert (tmp_path / "out" / "report.html").exists()
    assert clipmill("status", job, "--ray", "--address", ray_cluster.dashboard).output == "SUCCEEDED\n"
    listed = clipmill("status", "--ray", "--address", ray_cluster.dashboard).output
    assert f"{job}  SUCCEEDED  {tmp_path / 'out'}" in listed
    assert "1/1 videos" in clipmill("logs", job, "--ray", "--address", ray_cluster.dashboard).output
    stopped = clipmill("stop", job, "--ray", "--address", ray_cluster.dashboard)
    assert stopped.exit_code == 2
    assert f"{job} is not running (SUCCEEDED)" in stopped.output


def test_a_job_is_stopped_and_says_so(ray_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bikes.mp4").write_bytes(film("bikes.mp4").read_bytes())
    spec = tmp_path / "job.yaml"
    spec.write_text(f"input: {{uris: {tmp_path}}}\noutput: {tmp_path / 'out'}\nscores: {{text: off}}\n")
    submitted = clipmill("submit", str(spec), "--ray", "--address", ray_cluster.dashboard)
    assert submitted.exit_code == 0, submitted.output
    job = submitted.output.strip()
    address = ("--ray", "--address", ray_cluster.dashboard)
    deadline = time.monotonic() + 120
    while clipmill("status", job, *address).output.strip() == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert clipmill("stop", job, *address).output == f"stopping {job}\n"
    while (state := clipmill("status", job, *address).output.strip()) == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert state == "STOPPED"


@pytest.mark.parametrize(
    "command", [["submit", "job.yaml"], ["status"], ["status", "x"], ["logs", "x"], ["stop", "x"], ["list"]]
)
def test_a_cluster_that_is_not_there_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("input: {uris: films}\n")
    result = clipmill(*command, "--ray", "--address", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert result.output.startswith("clipmill: Ray at http://127.0.0.1:9: ")
    assert result.output.count("\n") == 1


_EARLY = """
import os, sys
from pathlib import Path
import pipelines.service.app, pipelines.service.jobs
from pipelines.ray_jobs import RayJobs, RayUnreachable

jobs = RayJobs("http://127.0.0.1:9")  # what `clipmill serve` does while `clipmill cluster` starts
try:
    jobs.list()
except RayUnreachable as error:
    print(error)
token = Path.home() / ".ray" / "auth_token"
token.parent.mkdir()
token.write_text("secret")
jobs.address = sys.argv[1]
try:
    jobs.list()
except RayUnreachable:
    print(os.environ["RAY_AUTH_MODE"])
"""


def test_the_token_of_a_cluster_that_is_being_started_is_found(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as anybody:
        threading.Thread(target=anybody.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", _EARLY, f"http://127.0.0.1:{anybody.server_port}"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        anybody.shutdown()
    said = "Ray at http://127.0.0.1:9: nobody answers there; `clipmill cluster` starts Ray on this machine"
    assert run.stdout.splitlines() == [said, "token"], run.stderr


class YoungCluster:
    """Answers as Ray does in its first seconds."""

    def __init__(self, refusals: int, message: str) -> None:
        self.refusals, self.message = refusals, message
        self.submitted: dict[str, Any] = {}

    def submit_job(self, **job: Any) -> str:
        self.submitted = job
        self.refusals -= 1
        if self.refusals >= 0:
            raise RuntimeError(self.message)
        return "clipmill-1"


def test_a_cluster_that_has_just_started_is_waited_for(tmp_path: Path) -> None:
    spec = Spec.model_validate({"input": {"uris": [str(tmp_path)]}, "output": str(tmp_path / "out")})
    no_agent = "Request failed with status code 500: No available agent to submit job, please try again later.."
    jobs = RayJobs()
    jobs._connected = YoungCluster(1, no_agent)  # type: ignore[assignment]
    assert jobs.submit(spec) == "clipmill-1"
    jobs._connected = YoungCluster(1, "Request failed with status code 500: quota")  # type: ignore[assignment]
    with pytest.raises(RayUnreachable, match="quota"):
        jobs.submit(spec)


def submitted(spec: Spec, installed: bool) -> dict[str, Any]:
    """What Ray is asked to run."""
    jobs, ray = RayJobs(), YoungCluster(0, "")
    jobs._connected = ray  # type: ignore[assignment]
    jobs.submit(spec, installed=installed)
    return ray.submitted


@given(name=st.text(), output=st.text())
@example(name="a\x85b", output="END\nEND\n")
@settings(max_examples=50, deadline=None)
def test_where_clipmill_is_installed_the_command_carries_the_spec(name: str, output: str) -> None:
    """Whatever its texts hold: nothing of it is a command to the shell, and no node has anything to unpack."""
    spec = parse_spec({"input": {"uris": [f"s3://{name}", "s3://a\nEND\necho $HOME"]}, "output": f"s3://{output}"}, "x")
    job = submitted(spec, installed=True)
    assert job["runtime_env"].keys() == {"env_vars"}
    command = job["entrypoint"].replace("exec python -m pipelines.cli curate - --address auto <<", "exec cat <<", 1)
    shown = subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout
    assert parse_spec(yaml.safe_load(shown.decode()), "shown") == spec


@pytest.mark.parametrize(("films", "installed"), [(2000, True), (1, False)])
def test_a_long_spec_or_one_for_a_cluster_without_clipmill_is_uploaded(films: int, installed: bool) -> None:
    uris = [f"s3://films/{k:060d}" for k in range(films)]
    job = submitted(Spec.model_validate({"input": {"uris": uris}, "output": "s3://out"}), installed)
    assert job["entrypoint"] == "exec python -m pipelines.cli curate job.yaml --address auto"
    assert "working_dir" in job["runtime_env"]
    assert ("py_modules" in job["runtime_env"]) is not installed


def test_a_job_runs_with_the_clipmill_of_the_cluster(ray_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "bikes.mp4").write_bytes(film("bikes.mp4").read_bytes())
    spec = tmp_path / "job.yaml"
    spec.write_text(f"input: {{uris: {tmp_path / 'films'}}}\noutput: {tmp_path / 'out'}\nscores: {{text: off}}\n")
    done = clipmill("submit", str(spec), "--ray", "--installed", "--address", ray_cluster.dashboard, "--wait")
    assert done.exit_code == 0, done.output
    assert "curate - --address auto" in done.output
    assert Dataset(tmp_path / "out").sources()["status"].to_pylist() == ["ok"]


def test_a_job_that_is_not_known_is_one_line(ray_cluster: Cluster) -> None:
    result = clipmill("status", "nosuchjob", "--ray", "--address", ray_cluster.dashboard)
    assert result.exit_code == 2
    assert "nosuchjob" in result.output
    assert result.output.count("\n") == 1
