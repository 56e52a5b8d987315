"""What a job may read when somebody else names it: configured roots, public servers, and nothing by another way."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.config import conf

from curation.input_policy import VARIABLE, Forbidden, InputPolicy, _guarded_client, enforce, from_environment


@pytest.fixture
def films(tmp_path: Path) -> Path:
    (tmp_path / "films" / "more").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "films" / "a.mp4").write_bytes(b"x")
    (tmp_path / "films" / "way-out.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "films2").mkdir()
    return tmp_path / "films"


def test_what_is_below_a_root_may_be_read(films: Path) -> None:
    policy = InputPolicy.of([str(films), "s3://bucket/films/", "https://films.example/public"])
    for uri in (f"{films}", f"{films}/a.mp4", f"file://{films}/a.mp4", f"{films}/*.mp4", f"{films}/more/../a.mp4",
                f"{films}/a::b.mp4", f"file://{films}/%ff.mp4",
                "s3://bucket/films", "s3://bucket/films/x.mp4", "https://films.example/public/x.mp4"):  # fmt: skip
        policy.check(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd", "file:///etc/passwd", "FILMS/../secret.mp4", "FILMS/way-out.mp4", "FILMS2/x.mp4", "FILMS/../*",
        "file://FILMS/%2e%2e/secret.mp4", "file://FILMS/a.mp4%0a",
        "FILMS/*/../../../etc/*", "films/a.mp4", "s3://bucket/other.mp4", "s3://bucket/films2/x.mp4",
        "s3://bucket/films/../x.mp4", "s3://bucket/films/%2e%2e/x.mp4", "s3://bucket2/films/x.mp4",
        "https://films.example/private", "https://films.example.evil/public/x", "https://u:p@films.example/public/x",
        "local:///etc/passwd", "memory://x", "simplecache::s3://bucket/films/x", "zip://x::file:///etc/x.zip",
        "FILMS/a.mp4\n", "data://text", "github://o:r@main/x", "reference://x", "dir:///etc",
    ],
)  # fmt: skip
def test_nothing_else_may_be(films: Path, uri: str) -> None:
    policy = InputPolicy.of([str(films), "s3://bucket/films", "https://films.example/public"])
    with pytest.raises(Forbidden):
        policy.check(uri.replace("FILMS", str(films)))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.9.1", "169.254.169.254", "10.0.0.8", "192.168.1.1", "172.16.0.1", "0.0.0.0", "100.64.0.1",
     "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"],
)  # fmt: skip
def test_the_web_is_public_addresses_only(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = InputPolicy.of([], web=True)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Forbidden):  # fsspec cannot read from an IPv6 address: it takes the "::" for a chain
        policy.check(f"http://{host}/x.mp4")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 1, 6, "", (address, 0))])
    with pytest.raises(Forbidden, match="is not public"):
        policy.check("https://innocent.example/x.mp4")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("93.184.215.14", 0))])
    policy.check("https://innocent.example/x.mp4")
    with pytest.raises(Forbidden):
        policy.check("ftp://innocent.example/x.mp4")


class _Film(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"film")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    found = HTTPServer(("127.0.0.1", 0), _Film)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def test_a_job_opens_no_connection_that_the_policy_forbids(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a redirect or a name server says: the connection itself is refused."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert from_environment() is None
    monkeypatch.setenv(VARIABLE, InputPolicy.of([], web=True).dumps())
    before = {scheme: dict(conf.get(scheme, {})) for scheme in ("http", "https")}
    try:
        assert enforce() == InputPolicy((), True)
        assert conf["http"]["get_client"] is _guarded_client
        with pytest.raises(OSError, match=r"not a public address|Cannot connect"):
            fsspec.filesystem("http", skip_instance_cache=True, **conf["http"]).cat_file(f"{server}/x.mp4")
        monkeypatch.setenv(VARIABLE, InputPolicy.of([server]).dumps())
        fs = fsspec.filesystem("http", skip_instance_cache=True, **conf["http"])
        assert fs.cat_file(f"{server}/x.mp4") == b"film", "a server that the operator named may be anywhere"
    finally:
        for scheme, kept in before.items():
            conf[scheme] = kept
    asyncio.set_event_loop(None)
