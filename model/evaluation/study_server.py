"""The page of a study: shows two videos, asks, and appends the answers. Who knows its address may vote."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import secrets
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse

from model.evaluation.errors import EvaluationError
from model.evaluation.study import SITTING, Study, Task, Vote, parse_vote, prefers_mosaic, read_votes

PAGE = Path(__file__).with_name("study.html")
_HELD_S = 600.0  # how long a task that was handed out is kept from others
_SECRET = re.compile(r"[A-Za-z0-9_-]+")
_RATER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Desk:
    """Hands out tasks and takes answers. Methods may be called from any thread."""

    def __init__(self, study: Study) -> None:
        """Goes on from the votes there are. Raises EvaluationError."""
        self._study, self._lock = study, threading.Lock()
        self._answered: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # rater, task, questions
        self._raters: dict[str, set[str]] = defaultdict(set)  # task -> raters that have answered it
        self._inattentive: set[str] = set()  # raters whose answers do not count
        self._held: dict[str, dict[str, float]] = defaultdict(dict)  # task -> rater -> until when
        for vote in read_votes(study):
            self._note(vote)
        self._file = study.folder / "votes.jsonl"
        self._drop_torn_line()

    def next(self, rater: str) -> tuple[Task, bool] | None:
        """A task that this rater has not answered, and whether its videos change sides; None when there is none left.

        Every rater's second task is an attention check, and then every 20th.
        """
        with self._lock:
            done = {task for task, asked in self._answered[rater].items() if len(asked) == len(self._study.questions)}
            chance = random.Random(f"{rater} {len(done)}")
            checks = [task for task in self._study.checks.values() if task.id not in done]
            task = checks[0] if checks and len(done) % SITTING == 1 else self._open_task(rater, done, chance)
            if task is None:
                return None
            self._held[task.id][rater] = time.monotonic() + _HELD_S
            return task, _swapped(rater, task.id)

    def answer(self, rater: str, task_id: str, answers: dict[str, str]) -> None:
        """Append a rater's answers: question -> file. What was answered before stays.

        Raises:
            ValueError: no such task, question or file.
            OSError: it cannot be written; nothing counts then.
        """
        task = self._study.tasks.get(task_id) or self._study.checks.get(task_id)
        if task is None or answers.keys() != self._study.questions.keys() or not set(answers.values()) <= {*task.files}:
            raise ValueError("not an answer to a task of this study")
        with self._lock:
            new = [
                Vote(rater, task_id, question, winner) for question, winner in answers.items()
                if question not in self._answered[rater][task_id]
            ]  # fmt: skip
            self._append("".join(json.dumps(asdict(vote)) + "\n" for vote in new))
            for vote in new:
                self._note(vote)

    def answered(self, rater: str) -> int:
        """Tasks that this rater has answered."""
        with self._lock:
            return sum(map(bool, self._answered[rater].values()))

    def _open_task(self, rater: str, done: set[str], chance: random.Random) -> Task | None:
        """One of those that fewest raters have or are at; those who preferred a mosaic are not counted."""
        now, at_work = time.monotonic(), Counter[str]()
        for task, holders in self._held.items():
            at_work[task] = sum(until > now and other != rater for other, until in holders.items())
        open_ = [
            task for task in self._study.tasks.values()
            if task.id not in done and len(self._raters[task.id] - self._inattentive - {rater}) < self._study.votes
        ]  # fmt: skip
        chance.shuffle(open_)
        return min(
            open_,
            key=lambda task: len(self._raters[task.id] - self._inattentive) + at_work[task.id],
            default=None,
        )

    def _note(self, vote: Vote) -> None:
        self._answered[vote.rater][vote.task].add(vote.question)
        self._raters[vote.task].add(vote.rater)
        self._held[vote.task].pop(vote.rater, None)
        if prefers_mosaic(self._study, vote):
            self._inattentive.add(vote.rater)

    def _append(self, text: str) -> None:
        with open(self._file, "ab", buffering=0) as file:
            whole = file.tell()
            try:
                if file.write(text.encode()) != len(text.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)  # a full disk took part of it: the next answer begins a line
                raise

    def _drop_torn_line(self) -> None:
        if self._file.exists():
            text = self._file.read_bytes()
            begin = text.rfind(b"\n") + 1
            if parse_vote(text[begin:]):  # whole, as an editor may leave it
                self._append("\n")
            elif begin < len(text):
                os.truncate(self._file, begin)


def _swapped(rater: str, task: str) -> bool:
    """Whether a rater sees the second video on the left: as good as a coin, and the same after a reload."""
    return hashlib.sha256(f"{rater} {task}".encode()).digest()[0] % 2 == 1


def make_app(study: Study, secret: str) -> FastAPI:
    """The page and its three addresses, all below /SECRET/. Raises EvaluationError."""
    if not _SECRET.fullmatch(secret):  # braces, for one, would let everybody in
        raise EvaluationError(f"{secret!r} is no secret for an address: give letters, digits, - and _")
    desk = Desk(study)
    page = PAGE.read_text(encoding="utf-8")
    router = APIRouter(prefix=f"/{secret}")

    def known(rater: str) -> str:
        if not _RATER.fullmatch(rater):
            raise HTTPException(422, "a rater's name has letters, digits, and - _ .")
        return rater

    @router.get("/", response_class=HTMLResponse)
    def show() -> str:
        return page

    @router.get("/next")
    def next_task(rater: Annotated[str, Query()]) -> dict[str, Any]:
        done = desk.answered(known(rater))
        found = desk.next(rater)
        if found is None:
            code = hashlib.sha256(f"{secret} {rater}".encode()).hexdigest()[:8]
            return {"task": None, "done": done, "code": code}
        task, swapped = found
        files = task.files[::-1] if swapped else task.files
        return {"task": task.id, "prompt": task.prompt, "files": files, "questions": study.questions, "done": done}

    @router.post("/answer", status_code=204)
    def answer(rater: Annotated[str, Body()], task: Annotated[str, Body()],
               answers: Annotated[dict[str, str], Body()]) -> None:  # fmt: skip
        try:
            desk.answer(known(rater), task, answers)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except OSError as error:
            raise HTTPException(507, f"the answer could not be stored: {error.strerror}") from error

    @router.get("/videos/{name}")
    def video(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, "no such video")
        return FileResponse(study.folder / "videos" / name)

    files = {file for task in [*study.tasks.values(), *study.checks.values()] for file in task.files}
    app = FastAPI(title="Which video?", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    return app


def new_secret() -> str:
    """The part of the address that is not to be guessed."""
    return secrets.token_urlsafe(12)
