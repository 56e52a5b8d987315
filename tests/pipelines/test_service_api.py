"""The service over HTTP: jobs, and what can be wrong with a request. Ray is a stand-in that obeys the test."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from curation.input_policy import InputPolicy
from pipelines.ray_jobs import RayUnreachable
from pipelines.service.app import create_app
from pipelines.service.jobs import Jobs
from pipelines.service.record import read_record
from tests.pipelines.fake_ray import FakeRay

LOCAL = "http://127.0.0.1:8080"


class Service:
    """A service whose jobs go on when the test says so."""

    def __init__(self, folder: Path, ray: FakeRay) -> None:
        self.folder, self.ray = folder, ray
        (folder / "films").mkdir(exist_ok=True)
        self.jobs = Jobs(str(folder / "data"), ray, InputPolicy.of([str(folder / "films")]), limit=2)
        app = create_app(self.jobs, None, dashboard=False)
        app.mount("", PlainTextResponse("a page"))  # like the dashboard, it answers every path that is left
        self.http = TestClient(app, base_url=LOCAL)

    def spec(self, output: str, **more: Any) -> dict[str, Any]:
        return {"input": {"uris": [str(self.folder / "films")]}, "output": output, "scores": {"text": "off"}} | more

    def submit(self, output: str, **more: Any) -> Any:
        return self.http.post("/api/jobs", json=self.spec(output, **more))

    def state(self, job: str) -> str:
        return str(self.http.get(f"/api/jobs/{job}").json()["state"])


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, FakeRay())


def refused(answer: Any, status: int, words: str) -> None:
    """The answer has this status and one sentence with these words."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    detail = answer.json()["detail"]
    assert words in detail
    assert "\n" not in detail
    assert "Traceback" not in detail


def test_a_job_from_its_submission_to_its_end(service: Service) -> None:
    answer = service.submit("films-1")
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/jobs/films-1"
    assert (answer.json()["state"], answer.json()["place"], answer.json()["cpus"]) == ("queued", 1, 2.0)
    assert (service.folder / "data" / "films-1" / "job.yaml").exists()
    service.jobs.tick()
    assert service.state("films-1") == "starting"
    service.jobs.tick()
    service.ray.set("films-1", "RUNNING")
    service.jobs.tick()
    assert service.state("films-1") == "running"
    assert "log of" in service.http.get("/api/jobs/films-1/logs").text
    service.ray.set("films-1", "SUCCEEDED", 0)
    service.jobs.tick()
    assert service.state("films-1") == "succeeded"
    followed = service.http.get("/api/jobs/films-1/logs?follow=true").text
    assert followed == service.http.get("/api/jobs/films-1/logs").text
    assert "log of" in followed, "the log is kept when the job has ended"
    spec = service.http.get("/api/jobs/films-1").json()["spec"]
    assert spec["resources"]["cpus"] == 2, "two jobs may run, so each has half of four CPUs"
    assert spec["clips"]["min"] == "2 s"
    assert service.http.get("/api/jobs?state=succeeded").json()[0]["id"] == "films-1"
    assert service.http.get("/api/jobs?owner=nobody").json() == []
    assert service.http.delete("/api/jobs/films-1").status_code == 204
    assert not (service.folder / "data" / "films-1").exists()
    refused(service.http.get("/api/jobs/films-1"), 404, "no job is called 'films-1'")


def test_the_limit_holds_and_a_cancelled_job_can_be_resumed(service: Service) -> None:
    for name in ("a", "b", "c"):
        assert service.submit(name).status_code == 201
    service.jobs.tick()
    assert [service.state(name) for name in "abc"] == ["starting", "starting", "queued"]
    assert service.http.get("/api/jobs/c").json()["place"] == 1
    assert service.http.post("/api/jobs/a/cancel").json()["state"] == "stopping"
    service.jobs.tick()
    service.jobs.tick()
    assert [service.state(name) for name in "abc"] == ["cancelled", "starting", "starting"]
    assert service.http.post("/api/jobs/a/resume").json()["state"] == "queued"
    assert service.http.post("/api/jobs/a/cancel").json()["state"] == "cancelled"
    refused(service.http.post("/api/jobs/a/cancel"), 409, "a has ended already (cancelled)")
    refused(service.http.post("/api/jobs/b/resume"), 409, "b has not ended")
    refused(service.http.delete("/api/jobs/b"), 409, "cancel it first")


def test_a_driver_that_died_is_started_again_and_one_that_ended_is_not(service: Service) -> None:
    service.submit("killed")
    service.submit("ended")
    service.jobs.tick()
    service.ray.set("ended", "FAILED", 1, "Job entrypoint command failed with exit code 1")
    for attempt in (1, 2):
        assert service.http.get("/api/jobs/killed").json()["attempt"] == attempt
        service.ray.set("killed", "FAILED", -9, "Job entrypoint command failed with exit code -9, last available logs")
        service.jobs.tick()
        assert service.state("killed") == "starting"
        assert "exit code -9); started again" in service.http.get("/api/jobs/killed").json()["message"]
    service.ray.set("killed", "FAILED", None, "the node is gone")
    service.jobs.tick()
    assert service.state("killed") == "failed"
    assert "3 times without finishing a source" in service.http.get("/api/jobs/killed").json()["message"]
    ended = service.http.get("/api/jobs/ended").json()
    assert (ended["state"], ended["attempt"]) == ("failed", 1)
    assert ended["message"] == "the disk is full; what is finished is kept. Continue with: clipmill curate job.yaml"


@pytest.mark.parametrize(
    ("exit_code", "last_words", "said"),
    [
        (1, "", "the driver died (exit)"),  # its raylet was killed, and Ray's code ended it without a word
        (1, "clipmill: models: nsfw is off", "the driver died (exit): models: nsfw is off"),
        (69, "clipmill: Ray at auto cannot be reached", "the driver died (exit): Ray at auto cannot be reached"),
    ],
)
def test_a_driver_that_lost_its_ray_is_started_again(
    service: Service, exit_code: int, last_words: str, said: str
) -> None:
    service.ray.last_words = last_words
    service.submit("lost")
    for _ in range(2):
        service.jobs.tick()
        service.ray.set("lost", "FAILED", exit_code, "exit")
        service.jobs.tick()
        assert service.state("lost") == "starting"
        assert service.http.get("/api/jobs/lost").json()["message"] == f"{said}; started again"
    service.ray.set("lost", "FAILED", exit_code, "exit")
    service.jobs.tick()
    lost = service.http.get("/api/jobs/lost").json()
    assert (lost["state"], lost["message"]) == ("failed", f"{said}, 3 times without finishing a source")


def test_a_job_that_no_node_takes_waits_for_one(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is for the half minute that Ray takes to end: nothing of the job has run, so nothing of it has died."""
    said = "Job supervisor actor could not be scheduled: The actor is not schedulable: The node doesn't exist any more"
    service.submit("a")
    service.jobs.tick()
    service.ray.set("a", "FAILED", None, said)
    service.jobs.tick()
    service.jobs.tick()
    found = service.http.get("/api/jobs/a").json()
    assert (found["state"], found["attempt"]) == ("queued", 1), "not again at once"
    assert "no node of the cluster took the job" in found["message"]
    monkeypatch.setattr("pipelines.service.jobs._PAUSE_S", 0.0)
    service.jobs._not_before.clear()
    for attempt in range(2, 9):
        service.jobs.tick()
        assert service.http.get("/api/jobs/a").json()["attempt"] == attempt
        service.ray.set("a", "FAILED", None, said)
    service.jobs.tick()
    assert service.state("a") == "starting"


def test_a_cluster_that_was_lost_costs_no_job(service: Service) -> None:
    service.submit("a")
    service.jobs.tick()
    service.jobs.tick()
    service.ray.jobs.clear()
    service.jobs.tick()
    assert service.state("a") == "starting"
    assert service.http.get("/api/jobs/a").json()["attempt"] == 2
    assert len(service.ray.jobs) == 1


def test_a_job_that_ray_does_not_take_yet_is_not_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any, **__: Any) -> None:
        raise RayUnreachable("No available agent to submit job")

    service.submit("a")
    with monkeypatch.context() as patch:
        patch.setattr(FakeRay, "submit", busy)
        for _ in range(8):
            service.jobs.tick()
    service.jobs.tick()
    found = service.http.get("/api/jobs/a").json()
    assert (found["state"], found["attempt"]) == ("starting", 1)


def test_a_service_that_is_started_again_shows_the_same_jobs(service: Service) -> None:
    for name in ("a", "b", "c", "d"):
        service.submit(name)
    service.jobs.tick()
    service.ray.set("a", "SUCCEEDED", 0)
    service.http.post("/api/jobs/d/cancel")
    before = service.http.get("/api/jobs").json()
    again = Service(service.folder, service.ray)
    again.ray.set("b", "RUNNING")
    assert again.http.get("/api/jobs").json() == before
    again.jobs.tick()
    assert [again.state(name) for name in "abcd"] == ["succeeded", "running", "starting", "cancelled"]
    third = Service(service.folder, service.ray)
    third.jobs.tick()
    assert third.http.get("/api/jobs").json() == again.http.get("/api/jobs").json()


def test_a_service_killed_while_it_deletes_or_submits_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.submit("a")
    service.submit("b")
    service.http.post("/api/jobs/a/cancel")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Jobs, "_delete_files", killed)
        with pytest.raises(KeyboardInterrupt):
            service.jobs.delete("a")
        patch.setattr(FakeRay, "submit", killed)
        with pytest.raises(KeyboardInterrupt):
            service.jobs.tick()
    again = Service(service.folder, service.ray)
    assert not (service.folder / "data" / "a").exists()
    assert [job["id"] for job in again.http.get("/api/jobs").json()] == ["b"]
    again.jobs.tick()
    assert again.state("b") == "starting"
    assert len(service.ray.jobs) == 1


def test_of_many_submissions_to_one_output_one_is_taken(service: Service) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(service.submit("same").status_code)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201, 409, 409, 409, 409, 409]


def test_an_output_that_holds_something_else_is_refused(service: Service) -> None:
    (service.folder / "data" / "photos").mkdir(parents=True)
    (service.folder / "data" / "photos" / "cat.jpg").write_bytes(b"")
    refused(service.submit("photos"), 409, "is not empty")
    (service.folder / "elsewhere").mkdir()
    (service.folder / "data" / "link").symlink_to(service.folder / "elsewhere")
    refused(service.submit("link"), 409, "is a link")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"output": "../up"}, 422, "'../up' is not a name"),
        ({"output": "/etc/clipmill"}, 422, "is not a name"),
        ({"output": "a/b"}, 422, "is not a name"),
        ({"output": "s3://bucket/x"}, 422, "is not a name"),
        ({"output": ""}, 422, "at least 1 character"),
        ({"input": {"uris": ["/etc"]}}, 403, "/etc: not below any"),
        ({"input": {"uris": ["file:///etc/passwd"]}}, 403, "not below any"),
        ({"input": {"uris": ["FILMS/../../etc"]}}, 403, "not below any"),
        ({"input": {"uris": ["films"]}}, 403, "not an absolute path"),
        ({"input": {"uris": ["http://169.254.169.254/latest/"]}}, 403, "not below any"),
        ({"input": {"uris": ["simplecache::file:///etc/passwd"]}}, 403, "chained"),
        ({"input": {"uris": ["s3://key:secret@bucket/x.mp4"]}}, 403, "carries a password"),
        ({"input": {"uris": ["FILMS/nothing.mp4"]}}, 422, "no such file"),
        ({"clips": {"min": 2}}, 422, "has no unit"),
        ({"clips": {"min": "2 s", "max": "3 s"}}, 422, "at least twice min"),
        ({"shards": {"size": "9" * 400 + " TB"}}, 422, "too large"),
        ({"colour": "red"}, 422, "unknown key"),
        ({"resources": {"source_cpus": 64}}, 422, "too few CPUs"),
    ],
)  # fmt: skip
def test_a_spec_that_may_not_run_is_refused(service: Service, change: dict[str, Any], status: int, words: str) -> None:
    films = str(service.folder / "films")
    change = json.loads(json.dumps(change).replace("FILMS", films))
    answer = service.http.post("/api/jobs", json=service.spec("out") | change)
    refused(answer, status, words)
    assert "secret" not in answer.text
    assert service.http.get("/api/jobs").json() == []
    assert not (service.folder / "data" / "out").exists()


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "the body is not application/json"),
        (b'{"input": {"uris": ["\\ud800"]}}', "application/json", 400, "surrogates not allowed"),
        (b'{"clips": {}, "clips": {}}', "application/json", 400, "the key 'clips' is there twice"),
        (b"clips: {}\nclips: {}", "application/yaml", 400, "line 2: the key 'clips' is there twice"),
        (b'{"a": NaN}', "application/json", 400, "NaN is not a JSON number"),
        (b"\xff\xfe", "application/json", 400, "the body is not"),
        (b"[" * 100_000, "application/json", 400, "the body is not"),
        (b"a: [", "application/yaml", 400, "the body is not application/yaml"),
        (b"[" * 100_000, "application/yaml", 400, "nested too deep"),
        (b"a: &x [1]\nb: *x", "application/yaml", 400, "aliases are not accepted"),
        (b"!!python/object/apply:os.system [ls]", "application/yaml", 400, "could not determine a constructor"),
        (b"{}", "text/plain", 415, "application/json or application/yaml"),
        (b"", "application/yaml", 422, "a spec is a mapping"),
        (b"[1, 2]", "application/json", 422, "a spec is a mapping of keys, this is list"),
        (b'"' + b"x" * (1 << 20) + b'"', "application/json", 413, "larger than"),
    ],
)
def test_a_body_that_is_no_spec_is_refused(service: Service, body: bytes, kind: str, status: int, words: str) -> None:
    refused(service.http.post("/api/jobs", content=body, headers={"Content-Type": kind}), status, words)


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "a%2fb", "a%00b", "%2Fetc", "-x", "x" * 101])
def test_a_name_that_is_no_job_never_becomes_a_path(service: Service, name: str) -> None:
    for method, rest in (("GET", ""), ("GET", "/logs"), ("POST", "/cancel"), ("DELETE", "")):
        answer = service.http.request(method, f"/api/jobs/{name}{rest}", follow_redirects=False)
        assert answer.status_code in (404, 405, 422), (method, rest, answer.text)


def test_a_cluster_that_is_down_is_said_and_jobs_are_still_shown(service: Service) -> None:
    service.submit("a")
    service.jobs.tick()
    service.ray.up = False
    service.jobs.tick()
    refused(service.submit("b"), 503, "the cluster is down, the job was not taken")
    assert service.http.get("/api/health").json()["ray"] == "down"
    assert service.state("a") == "starting"
    refused(service.http.get("/api/jobs/a/logs"), 503, "connection refused")
    assert service.http.post("/api/jobs/a/cancel").json()["state"] == "stopping"
    service.ray.up = True
    service.jobs.tick()
    service.jobs.tick()
    assert service.state("a") == "cancelled"


def test_unknown_paths_methods_and_hosts(service: Service) -> None:
    refused(service.http.get("/api/nothing"), 404, "there is nothing at /api/nothing")
    refused(service.http.post("/api/jobs/a/b/c", json={}), 404, "there is nothing at /api/jobs/a/b/c")
    refused(service.http.put("/api/jobs", json={}), 405, "Method Not Allowed")
    assert service.http.get("/api/jobs", headers={"Host": "evil.example"}).status_code == 400


def test_a_record_that_cannot_be_read_leaves_the_others(service: Service) -> None:
    service.submit("a")
    service.submit("b")
    (service.folder / "data" / "a" / "service.json").write_text("{")
    again = Service(service.folder, service.ray)
    assert [job["id"] for job in again.http.get("/api/jobs").json()] == ["b"]
    assert read_record(again.jobs.storage("nobody"), "nobody") is None


def test_the_policy_travels_with_the_job_and_no_secret_does(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    service.submit("a")
    service.jobs.tick()
    assert json.loads(service.ray.environments[0]["CLIPMILL_INPUTS"])["roots"] == [str(service.folder / "films")]
    assert "hush" not in str(service.ray.environments) + service.ray.specs[0].as_yaml()


def test_the_page_has_a_field_for_every_key_of_the_spec(service: Service) -> None:
    text = service.http.get("/jobs").text
    for path in ("input.uris", "output", "clips.min", "scores.text.implementation", "resources.attempts", "gates"):
        assert f'name="{path}"' in text, path
    assert "<option selected>smart</option>" in text
    assert service.http.get("/", follow_redirects=False).headers["location"] == "/jobs"
    assert "script-src 'self'" in service.http.get("/jobs").headers["content-security-policy"]
