"""A study of human preference: which of two videos people prefer (paper, appendix E.1).

    STUDY/study.json        models, questions, tasks and attention checks, and which file is whose
    STUDY/videos/*.mp4      the videos under names that tell nothing
    STUDY/votes.jsonl       one line per answer, appended as they come

Every two models meet on every video that both have. A task is done with `votes` raters; an attention check shows a
video beside the same in coarse mosaic, and who prefers the mosaic is not counted.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from model.evaluation.elo import Rating, ratings
from model.evaluation.errors import EvaluationError

SITTING = 20  # tasks from one attention check to the next


@dataclass(frozen=True)
class Task:
    """Two videos to choose from. `models`: of which the files are; a check has the good one first."""

    id: str
    prompt: str
    files: tuple[str, str]
    models: tuple[str, str] | None


@dataclass(frozen=True)
class Study:
    """Everything but the votes."""

    folder: Path
    models: tuple[str, ...]
    questions: dict[str, str]
    votes: int
    tasks: dict[str, Task]
    checks: dict[str, Task]


@dataclass(frozen=True)
class Vote:
    """One answer: the file that was preferred to the other one of its task."""

    rater: str
    task: str
    question: str
    winner: str


def read_study(folder: Path) -> Study:
    """A study that was made. Raises EvaluationError."""
    try:
        said = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        tasks, checks = (
            {each["id"]: Task(**each | {"files": tuple(each["files"]), "models": _pair(each["models"])})
             for each in said[kind]}
            for kind in ("tasks", "checks")
        )  # fmt: skip
        return Study(folder, tuple(said["models"]), said["questions"], said["votes"], tasks, checks)
    except FileNotFoundError as error:
        raise EvaluationError(f"{folder}: no study; make one with `clipmill evaluate study make`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{folder}/study.json: damaged ({error})") from error


def read_votes(study: Study) -> list[Vote]:
    """The answers so far; the last line may have been cut short by a kill. Raises EvaluationError."""
    path = study.folder / "votes.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        vote = parse_vote(line)
        if vote is not None:
            found.append(vote)
        elif line.strip() and number < len(lines):
            raise EvaluationError(f"{path}: line {number} is no vote; remove or mend it")
    return found


def parse_vote(line: bytes) -> Vote | None:
    """The vote of a line, None if it is none."""
    try:
        vote = Vote(**json.loads(line))
    except (ValueError, TypeError):
        return None
    return vote if all(isinstance(each, str) for each in asdict(vote).values()) else None


@dataclass(frozen=True)
class Score:
    """What a study has found so far."""

    ratings: dict[str, dict[str, Rating]]  # question -> model -> rating
    wins: dict[str, dict[tuple[str, str], int]]  # question -> (winner, loser) -> votes
    tasks_done: int
    tasks: int
    raters: int
    inattentive: list[str]


def score(study: Study, votes: list[Vote]) -> Score:
    """Ratings per question, from the votes of raters who never preferred a mosaic. Of a task the first `study.votes`
    answers to each question count, and of a rater one."""
    inattentive = {vote.rater for vote in votes if prefers_mosaic(study, vote)}
    counted: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # task, question -> rater -> winner
    for vote in votes:
        task = study.tasks.get(vote.task)
        if task is None or vote.rater in inattentive or vote.winner not in task.files:
            continue
        answers = counted[vote.task, vote.question]
        if vote.rater in answers or len(answers) < study.votes:
            answers.setdefault(vote.rater, vote.winner)
    found: dict[str, dict[str, Rating]] = {}
    wins: dict[str, dict[tuple[str, str], int]] = {}
    place = {model: k for k, model in enumerate(study.models)}
    for question in study.questions:
        pairs = []
        for (task_id, asked), answers in counted.items():
            files, models = study.tasks[task_id].files, study.tasks[task_id].models
            assert models is not None
            if asked == question:
                pairs += [models if winner == files[0] else models[::-1] for winner in answers.values()]
        rated = ratings([(place[a], place[b]) for a, b in pairs], len(study.models))
        found[question] = dict(zip(study.models, rated, strict=True))
        wins[question] = dict(Counter(pairs))
    done = sum(
        all(len(counted.get((task, question), ())) >= study.votes for question in study.questions)
        for task in study.tasks
    )
    return Score(found, wins, done, len(study.tasks), len({vote.rater for vote in votes}), sorted(inattentive))


def prefers_mosaic(study: Study, vote: Vote) -> bool:
    """Whether this answer shows that its rater does not look."""
    return vote.task in study.checks and vote.winner != study.checks[vote.task].files[0]


def _pair(models: list[str] | None) -> tuple[str, str] | None:
    return (models[0], models[1]) if models else None
