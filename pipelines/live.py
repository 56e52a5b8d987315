"""Where a running job is: `Progress` in its own process, and progress.json for whoever looks at its dataset from
elsewhere (the dashboard, a service).

The job's driver writes it every few seconds beside job.yaml, and removes it when the job is finished. A job that ended
otherwise leaves it there: with the reason in `ended` when it could still say so, and with a `written` that stays behind
when it was killed. The file says nothing that the dataset needs: losing it loses nothing.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice

from curation.storage import Storage

NAME = "progress.json"
KEPT = "what is finished is kept"
"""Said in the last line of a job that ended by itself, and can be carried on."""
EVERY_S = 2.0
SILENT_S = 60.0  # without a word for so long, a job is taken for dead; clocks of two machines may differ by seconds
_NEXT = 10


@dataclass
class Progress:
    """What a display shows while a job runs. Counts include what earlier runs of the job have done."""

    sources: int = 0
    sources_done: int = 0
    earlier: int = 0  # of the sources done, those that an earlier run did
    bytes: int = 0  # of the sources of this run
    bytes_done: int = 0
    clips: int = 0
    video_s: float = 0.0  # of the sources finished in this run
    failed: int = 0
    waiting: dict[str, None] = field(default_factory=dict)  # uris of the sources of this round that are not done
    later: int = 0  # sources of the rounds to come
    warnings: list[str] = field(default_factory=list)  # what models said: a batch that was halved
    stage: str = "starting"
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Wall seconds of this run."""
        return time.monotonic() - self.began

    @property
    def left_s(self) -> float | None:
        """Wall seconds left, in proportion to the bytes of the sources (to their number where no size is known).
        None before the first per cent."""
        total, done = self.bytes, self.bytes_done
        if not total:
            total, done = self.sources - self.earlier, self.sources_done - self.earlier
        if not done or done < 0.01 * total:
            return None
        return self.elapsed_s * (total - done) / done


@dataclass(frozen=True)
class LiveJob:
    """A running job as it last described itself. Counts include what earlier runs of the job have done."""

    stage: str  # starting, curating, compacting, deciding, writing shards, reporting
    sources: int
    sources_done: int
    failed: int
    clips: int
    waiting: int  # sources in the queue or at work
    next: list[str]  # the uris of the first of those
    video_s: float  # of the sources finished in this run
    elapsed_s: float  # wall seconds of this run
    left_s: float | None  # wall seconds left, None while that cannot be told
    written: float  # when this was written, seconds since 1970
    ended: str | None = None  # why the job stopped before it was finished

    @property
    def silent_s(self) -> float:
        """Seconds since the job last said a word."""
        return max(0.0, time.time() - self.written)

    @property
    def running(self) -> bool:
        """Whether the job seems to be alive."""
        return self.ended is None and self.silent_s < SILENT_S


def describe(progress: Progress, ended: str | None = None) -> LiveJob:
    """A job's progress as others may see it."""
    return LiveJob(
        stage=progress.stage,
        sources=progress.sources,
        sources_done=progress.sources_done,
        failed=progress.failed,
        clips=progress.clips,
        waiting=len(progress.waiting) + progress.later,
        next=list(islice(progress.waiting, _NEXT)),  # one step of the interpreter: the driver changes it meanwhile
        video_s=round(progress.video_s, 3),
        elapsed_s=round(progress.elapsed_s, 1),
        left_s=None if progress.left_s is None else round(progress.left_s, 1),
        written=time.time(),
        ended=ended,
    )


def read_live(storage: Storage) -> LiveJob | None:
    """What the job of a dataset last said; None when no job is on its way, or its file cannot be understood."""
    try:
        data = json.loads(storage.read(NAME))
        return LiveJob(**{key: data[key] for key in LiveJob.__dataclass_fields__})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def told(storage: Storage, describe_now: Callable[[str | None], LiveJob]) -> Iterator[None]:
    """Keep progress.json up to date while the block runs, from a thread of its own.

    `describe_now(ended)` says where the job is. A disk that takes no more is the job's to report, not this file's.
    """
    done = threading.Event()

    def write(ended: str | None = None) -> None:
        with suppress(OSError):
            storage.write(NAME, (json.dumps(asdict(describe_now(ended)), indent=1) + "\n").encode())

    def repeat() -> None:
        write()
        while not done.wait(EVERY_S):
            write()

    storage.remove_leftovers("")
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    ended: str | None = None
    try:
        yield
    except BaseException as error:
        told_to = isinstance(error, KeyboardInterrupt | SystemExit)  # Ctrl-C, or Ray's answer to a signal
        ended = "interrupted" if told_to else str(error) or type(error).__name__
        raise
    finally:
        done.set()
        thread.join()
        if ended is None:
            with suppress(OSError):
                storage.remove(NAME)
        else:
            write(ended)
