"""The service on a real Ray Serve: the proxy's port takes jobs with a token, and Ray Jobs runs them."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.dataset import Dataset
from pipelines.service.client import Client, ServiceError
from pipelines.service.record import ENDED
from pipelines.service.tokens import TokenStore
from pipelines.spec import parse_spec
from tests.media import film
from tests.pipelines.service_rig import free_port

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of the service, on the datasets in `data` and the films in `films`, with the tokens in `tokens.json`."""
    from ray import serve

    from pipelines.service.on_ray_serve import Arguments, build

    port = free_port()
    arguments = {"datasets": str(tmp_path / "data"), "inputs": [str(tmp_path / "films")], "installed": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build(Arguments(**arguments, tokens=tmp_path / "tokens.json")), name="clipmill")  # type: ignore[arg-type]
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


@pytest.fixture
def token(tmp_path: Path) -> str:
    return TokenStore(tmp_path / "tokens.json").make("ann", "submit")


def test_a_job_over_http_with_a_token(
    token: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "bikes.mp4").write_bytes(film("bikes.mp4").read_bytes())
    assert httpx.get(f"{address}/api/health").status_code == 200
    assert httpx.get(f"{address}/api/jobs").status_code == 401
    with pytest.raises(ServiceError, match="a token is needed"):
        Client(address).jobs()
    monkeypatch.setenv("CLIPMILL_TOKEN", token)
    client = Client(address)
    data = {"input": {"uris": [str(tmp_path / "films")]}, "output": "one", "scores": {"text": "off"}}
    assert client.submit(parse_spec(data | {"clips": {"min": "1 s", "max": "4 s"}}, "test")) == "one"
    assert [job["id"] for job in client.jobs()] == ["one"]
    printed = "".join(client.follow("one"))  # until the job has ended
    deadline = time.monotonic() + 60
    while (job := client.job("one"))["state"] not in ENDED:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    assert (job["state"], job["owner"]) == ("succeeded", "ann"), printed
    assert client.progress("one")["sources_done"] == 1
    assert Dataset(tmp_path / "data" / "one").clips().num_rows > 0
    page = httpx.get(f"{address}/d/one", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    assert (page.status_code, "nicegui" in page.text.lower()) == (200, True), "the dashboard is mounted"


def test_without_a_token_it_does_not_start(tmp_path: Path) -> None:
    from pipelines.service.on_ray_serve import Arguments, _service

    arguments = Arguments(datasets=str(tmp_path / "data"), tokens=tmp_path / "tokens.json")
    with pytest.raises(RuntimeError, match=r"a token is needed in .*: clipmill token make NAME --role admin"):
        _service(arguments)
