"""How the dashboard's tests serve, open and read pages; what a page must show is counted without the project's code."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from playwright.sync_api import Page, expect

RULES: dict[str, Any] = {"motion.coarse": {"drop_lowest": "25%"}, "text_area": {"max": 0.07}}
ATTACK = "<img src=x onerror=\"document.title='owned'\">"
WAIT_MS = 60_000  # a busy machine is slow; nothing here measures time
expect.set_options(timeout=WAIT_MS)


@contextmanager
def serving(*roots: Path) -> Iterator[str]:
    """`clipmill dashboard` on a free port; yields its address."""
    command = [sys.executable, "-m", "pipelines.cli", "dashboard", *map(str, roots), "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].rstrip("/")
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/d/{roots[0].name}/download.csv?rules=%7B%7D", timeout=30).read()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        assert server.stdout is not None
        server.stdout.close()
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def exported(page: Page, clips: int) -> None:
    """Wait for the word that an export is done, which is not its progress: "0 of 23 clips, 0 B"."""
    expect(page.get_by_text(re.compile(f"^{clips} clips, "))).to_be_visible()


def kept_by_duckdb(root: Path, low: float, text: float | None = 0.07) -> int:
    """Counted without any of the project's code."""
    condition = f"AND list_max(text_area) <= {text}::FLOAT AND text_area_error IS NULL" if text is not None else ""
    row = duckdb.sql(
        f"SELECT count(*) FROM '{root}/clips/*.parquet' WHERE motion_coarse_error IS NULL "
        f"AND motion_coarse >= {low}::FLOAT {condition}"
    ).fetchall()[0]
    return int(row[0])


def kept_clips(page: Page) -> int:
    return int(page.locator('[data-test="kept-clips"]').inner_text().replace("\u202f", ""))


def low_in_link(page: Page) -> float:
    """The lower bound of the motion score that the page's link holds."""
    rules = json.loads(page.evaluate("new URLSearchParams(location.search).get('rules')"))
    return float(rules["motion.coarse"]["min"])


def settled(page: Page) -> None:
    """Wait until the page has answered the last change: the link holds what it shows."""
    expect(page.locator(".clips .clip, .clips-none").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_function("() => location.search.includes('show=')", timeout=WAIT_MS)


def opened(page: Page, address: str, query: str = "") -> None:
    page.goto(f"{address}/d/films{query}")
    expect(page.locator('[data-test="kept-clips"]')).to_be_visible(timeout=WAIT_MS)
    settled(page)


def fetch(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
