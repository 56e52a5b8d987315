"""`clipmill submit|list|status|logs|stop|resume` speak to the service. Ray obeys the test."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

import pipelines.service.client
from curation.input_policy import InputPolicy
from pipelines.cli import main
from pipelines.live import SILENT_S, Progress, describe, read_live, told
from pipelines.service.client import Client, ServiceError
from pipelines.service.jobs import Jobs
from pipelines.service.routes import progress_of
from pipelines.service.tokens import TokenStore
from tests.pipelines.fake_ray import FakeRay
from tests.pipelines.test_service_page import serving


def clipmill(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    (tmp_path / "films").mkdir()
    found = Jobs(str(tmp_path / "data"), FakeRay(), InputPolicy.of([str(tmp_path / "films")]))
    monkeypatch.setattr(found, "keep_going", lambda: lambda: None)  # jobs go on when the test says so
    tokens = TokenStore(tmp_path / "tokens.json")
    with serving(found, tokens) as url:
        monkeypatch.setenv("CLIPMILL_ADDRESS", url)
        monkeypatch.setenv("CLIPMILL_TOKEN", tokens.make("ann", "submit"))
        monkeypatch.chdir(tmp_path)
        yield found


def test_a_job_from_the_command_line(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: {uris: films}\noutput: one\nscores: {text: off}\n")
    assert clipmill("submit", "job.yaml").output == "one\n"
    assert jobs.spec("one").input.uris == [str(tmp_path / "films")], "local paths are made absolute here"
    assert clipmill("submit", "job.yaml", "-o", "two").output == "two\n"
    assert clipmill("status", "two").output == "queued, 2 in line\n"
    jobs.tick()
    listed = clipmill("list").output.splitlines()
    assert [line.split()[:3] for line in listed] == [["two", "starting", "ann"], ["one", "starting", "ann"]]
    assert clipmill("status").output.splitlines() == listed
    assert clipmill("logs", "one").output.splitlines()[1].startswith("log of ")
    assert clipmill("stop", "one").output == "one stopping\n"
    jobs.tick()
    jobs.tick()
    assert clipmill("status", "one").output == "cancelled\n"
    assert clipmill("logs", "-f", "one").output == clipmill("logs", "one").output
    assert clipmill("resume", "one").output == "one queued\n"
    jobs.ray.set("two", "SUCCEEDED", 0)  # type: ignore[attr-defined]
    jobs.tick()
    assert clipmill("status", "two").output == "succeeded\n"


def test_the_list_is_a_table(jobs: Jobs, tmp_path: Path) -> None:
    assert clipmill("list").output == ""
    (tmp_path / "job.yaml").write_text("input: {uris: films}\nscores: {text: off}\n")
    for name in ("a", "a-longer-name"):
        assert clipmill("submit", "job.yaml", "-o", name).output == f"{name}\n"
    lines = clipmill("list").output.splitlines()
    assert len({line.index("queued") for line in lines}) == 1
    assert len({line.index("ann") for line in lines}) == 1


def test_what_the_service_refuses_is_one_line(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text("input: {uris: /etc}\noutput: one\n")

    def refused(*arguments: str) -> str:
        result = clipmill(*arguments)
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        return result.output

    assert "/etc: not below any of the inputs" in refused("submit", "job.yaml")
    assert "no job is called 'nosuchjob'" in refused("status", "nosuchjob")
    assert "no job is called 'nosuchjob'" in refused("logs", "nosuchjob")
    assert "has not ended" not in refused("resume", "nosuchjob")
    assert "goes with --ray" in refused("submit", "job.yaml", "--installed")
    for name in ("../jobs", "a/b", "a b", "..", "ä"):
        assert f"no job is called {name!r}" in refused("logs", name)
    for token in ("cm_two\nlines", "cm_tökén"):
        monkeypatch.setenv("CLIPMILL_TOKEN", token)
        assert "set it to what `clipmill token make` printed" in refused("list")
    monkeypatch.setenv("CLIPMILL_TOKEN", "cm_wrong")
    assert "the token is wrong, has expired or was revoked" in refused("list")
    monkeypatch.setenv("CLIPMILL_ADDRESS", "http://127.0.0.1:9")
    assert "start it with `clipmill serve`, or use --ray" in refused("list")
    monkeypatch.setenv("CLIPMILL_ADDRESS", "127.0.0.1:8080")
    assert "write http://HOST:PORT" in refused("list")


def test_a_stopped_job_says_how_many_videos_there_are(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: {uris: films}\noutput: one\nscores: {text: off}\n")
    clipmill("submit", "job.yaml")
    jobs.tick()
    jobs.tick()
    storage = jobs.storage("one")
    with pytest.raises(SystemExit), told(storage, partial(describe, Progress(sources=10, sources_done=4, clips=12))):
        raise SystemExit(15)  # what a driver is ended by when Ray stops its job
    ended = read_live(storage)
    assert ended is not None
    assert ended.ended == "interrupted"
    clipmill("stop", "one")
    jobs.tick()
    jobs.tick()
    again = Jobs(str(tmp_path / "data"), jobs.ray, jobs.policy)  # a service that was started again
    for each in (jobs, again):
        progress = progress_of(each, "one")
        assert (progress.state, progress.stage, progress.sources, progress.left_s) == ("cancelled", None, 10, None)


def test_a_job_that_starts_again_does_not_show_what_its_killed_driver_said(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: {uris: films}\noutput: one\nscores: {text: off}\n")
    clipmill("submit", "job.yaml")
    jobs.tick()
    jobs.tick()
    killed = describe(Progress(sources=10, sources_done=4, stage="curating"))
    for silent_s, stage in ((0.0, "curating"), (2 * SILENT_S, None)):
        said = asdict(replace(killed, written=killed.written - silent_s))
        jobs.storage("one").write("progress.json", json.dumps(said).encode())
        assert progress_of(jobs, "one").stage == stage


class _Torn(httpx.SyncByteStream):
    """A body that ends as that of a killed service does."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"one\ntw"
        raise httpx.RemoteProtocolError("peer closed connection")


def test_a_log_is_followed_over_a_service_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.service.client, "_RETRY_S", 0.0)
    there, torn = httpx.Response(200, json={}), httpx.Response(200, stream=_Torn())
    answers = iter([there, None, torn, None, httpx.Response(200, text="one\ntwo\nthree\n")])

    def answer(request: httpx.Request) -> httpx.Response:
        if (said := next(answers)) is None:
            raise httpx.ConnectError("refused")
        return said

    client = Client("http://x", httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x"))
    assert "".join(client.follow("job")) == "one\ntwo\nthree\n"
    answers = iter([None])
    with pytest.raises(ServiceError, match="refused; start it with"):
        list(client.follow("job"))


@pytest.mark.parametrize("status", [200, 401, 404, 502])
def test_another_program_at_the_address_is_said(status: int) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, text="<html>hello</html>"))
    client = Client("http://x", httpx.Client(transport=transport, base_url="http://x"))
    with pytest.raises(ServiceError, match=f"answers {status}, and not as `clipmill serve` does.*--ray"):
        client.jobs()


def test_a_service_is_not_taken_for_ray(jobs: Jobs) -> None:
    with serving(jobs, None) as url:
        result = clipmill("list", "--ray", "--address", url)
    assert result.exit_code == 2
    assert "does not answer as Ray's dashboard does; the address of `clipmill serve` goes without" in result.output
