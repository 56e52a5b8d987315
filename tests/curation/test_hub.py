"""`clipmill models pull` from a hub: a local server that answers as the Hugging Face hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = "Qwen/Qwen2.5-1.5B-Instruct"
COMMIT = "c0ffee" + "0" * 34
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "model.safetensors": b"w" * 300_000,
    "pytorch_model.bin": b"b" * 300_000,  # the same weights again, as many repositories have them
    "tokenizer.json": b"{}",
    "README.md": b"A model.",
}


class _Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fetched: list[str]

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = path.startswith(f"/api/models/{REPO}") and path.rpartition("/")[2] in ("main", COMMIT)
        if known and "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self._answer(json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif known:
            info = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self._answer(json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            tag = hashlib.sha256(FILES[name]).hexdigest()
            if self.command == "GET":
                self.fetched.append(name)
            self._answer(FILES[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment in which commands meet this hub, and the files that it was asked for."""
    fetched: list[str] = []
    handler = type("Hub", (_Hub,), {"fetched": fetched})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        yield os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}, fetched
        server.shutdown()
        thread.join()


_RUN = """
import json, sys
from click.testing import CliRunner
from pipelines.models_cli import models

for line in sys.stdin:
    result = CliRunner().invoke(models, [*line.split(), "--profile", "paper", "--role", "caption_merge"])
    print(json.dumps([result.exit_code, result.stdout, result.stderr]))
"""


def models(environment: dict[str, str], *commands: str) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of `clipmill models COMMAND`. In a process of its own: the address is read once."""
    asked = "\n".join(commands)
    run = subprocess.run(
        [sys.executable, "-c", _RUN], env=environment, input=asked, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return [tuple(json.loads(line)) for line in run.stdout.splitlines()]


def test_pull_downloads_what_is_needed_once_and_records_the_commit(
    hub: tuple[dict[str, str], list[str]], tmp_path: Path
) -> None:
    environment, fetched = hub
    missing, pulled, there, wrong = models(environment, "check", "pull", "check", "pull --revision no-such-branch")
    assert missing[0] == 2
    assert f"{REPO}@main (config.json) is not in the hub's cache here" in missing[1]
    assert pulled[0] == 0, pulled[2]
    assert "100%" in pulled[2]  # progress
    assert sorted(fetched) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert f"ok       caption_merge: qwen2_5_1_5b  {tmp_path}" in there[1]
    assert f"snapshots/{COMMIT}" in there[1]
    assert wrong[0] == 2
    assert wrong[2].count("\n") == 1
    assert f"cannot download {REPO} from the hub" in wrong[2]
