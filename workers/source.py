"""The actor that takes a source apart: everything that shares the source's decode."""

import faulthandler
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import pyarrow as pa
import ray
from fsspec.implementations.local import LocalFileSystem

from curation.errors import CannotDecode
from curation.input_policy import Forbidden, enforce
from curation.location import file_system, is_unicode
from curation.segment import Segment
from curation.source import SourceSettings, SourceStage, failed_row
from curation.tracing import span
from workers.wire import message, pack

_TRACED = ("source_id", "status", "reason", "clips", "duration_s", "probe_s", "cuts_s", "clips_s", "scores_s")
_GRACE_S = 30.0  # for a thread that waits for the interpreter lock; then the process is ended from outside Python


class SourceActor:
    """Turns a source's name into segment messages, then one report."""

    def __init__(self, settings: SourceSettings, timeout_s: float, ledger: Any = None) -> None:
        """Load the models.

        Args:
            settings: what is done with each source.
            timeout_s: wall seconds of work on one source after which it counts as hung. A native decoder cannot be
                interrupted, so the process ends itself, after a word to the ledger.
            ledger: handle of a `Ledger`.
        """
        cv2.setNumThreads(1)
        self._policy = enforce()
        self._stage = SourceStage(settings)
        self._timeout_s = timeout_s
        self._ledger = ledger

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One message per segment as it is finished, and a report for each source of the batch."""
        for uri in batch["uri"].to_pylist():
            with span("source", uri) as said:
                for part in self._within_time(uri, self._messages(uri)):
                    if part["kind"][0].as_py() == "report":
                        row = json.loads(part["note"][0].as_py())["row"]
                        said |= {key: row.get(key) for key in _TRACED}
                    yield part

    def _messages(self, uri: str) -> Iterator[pa.Table]:
        try:
            if self._policy is not None:
                self._policy.check(uri)
            with local_copy(uri) as path:
                for part in self._stage.run(path, uri):
                    if isinstance(part, Segment):
                        note = {"source_id": part.source_id, "index": part.index}
                        yield message("segment", uri, note, pack(part))
                    else:
                        yield message("report", uri, {"row": part.row, "segments": part.segments})
        except Forbidden as error:
            row = failed_row(uri, "forbidden", str(error))
            yield message("report", uri, {"row": row, "segments": 0})
        except CannotDecode as error:
            row = failed_row(uri, error.reason, str(error))
            yield message("report", uri, {"row": row, "segments": 0})
        except Exception as error:  # else Ray would drop the block and say nothing
            row = failed_row(uri, "internal_error", f"{type(error).__name__}: {error}")
            yield message("report", uri, {"row": row, "segments": 0})

    def _within_time(self, uri: str, steps: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The steps, while their working time (not the time that they wait for a slower writer) is within the limit."""
        left_s = self._timeout_s
        while True:
            began = time.monotonic()
            timer = threading.Timer(max(0.0, left_s), self._give_up, [uri])
            timer.daemon = True
            timer.start()
            faulthandler.dump_traceback_later(max(0.0, left_s) + _GRACE_S, exit=True)
            try:
                step = next(steps, None)
            finally:
                timer.cancel()
                faulthandler.cancel_dump_traceback_later()
            if step is None:
                return
            left_s -= time.monotonic() - began
            yield step

    def _give_up(self, uri: str) -> None:
        if self._ledger is not None:
            ray.get(self._ledger.note_overdue.remote(uri), timeout=_GRACE_S)
        os._exit(1)


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local path that holds the source: itself, or a copy on this node's disk while the block runs.

    The path is Unicode, as what is said about it must be; one that is not has a link to it.

    Raises:
        CannotDecode: `missing`, `unreadable` or `fetch_failed`.
    """
    fs, path = file_system(uri)
    is_local = isinstance(fs, LocalFileSystem)
    if is_local and is_unicode(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
        copy = os.path.join(folder, os.path.basename(uri if is_local else path) or "source")
        if is_local:
            os.symlink(path, copy)
            yield copy
            return
        try:
            fs.get_file(path, copy)
        except FileNotFoundError as error:
            raise CannotDecode("missing", f"{uri}: no such file") from error
        except PermissionError as error:
            raise CannotDecode("unreadable", f"{uri}: permission denied") from error
        except Exception as error:  # HTTP and object stores have their own kinds
            raise CannotDecode("fetch_failed", f"{uri}: {error or type(error).__name__}") from error
        yield copy
