"""Makes the folder of a study: pairs of videos under names that tell nothing, and attention checks."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from model.evaluation.errors import EvaluationError
from model.evaluation.study import SITTING, Study, Task
from model.evaluation.videos import Video, by_name, find_videos, first_frames
from model.video_io import from_bytes, write_video

QUESTIONS = {"quality": "Which video has the higher visual quality?"}
PROMPT_QUESTION = {"prompt": "Which video follows the text better?"}
PLAYABLE = (".mp4", ".webm")
_CODECS = ("h264", "vp8", "vp9", "av1")
_MOSAIC_BLOCKS = 10  # of the shorter side
_VISIBLE = 2.0  # mean difference, in grey levels, that a mosaic must make


def make_study(
    models: Mapping[str, str], folder: Path, *, prompts: Path | None = None, votes: int = 3, seed: int = 0
) -> Study:
    """Write the folder of a study.

    Args:
        models: name -> folder of videos; the same names of videos belong together.
        prompts: CSV with the columns `name` and `prompt`; raters then see the prompt, and are asked about it.
        votes: raters of each task.

    Raises:
        EvaluationError: the folder exists, the models have no videos in common, or browsers cannot play one.
        DataError: a shard that cannot be read.
    """
    if folder.exists():
        raise EvaluationError(f"{folder}: exists already; a study is made once, so that votes belong to its videos")
    if len(models) < 2:
        raise EvaluationError("a study compares at least two models: NAME=FOLDER NAME=FOLDER")
    of = {model: by_name(find_videos([place])) for model, place in models.items()}
    for video in itertools.chain.from_iterable(each.values() for each in of.values()):
        _check_playable(video)
    texts = _prompts(prompts) if prompts else {}
    shared = sorted({name for a, b in itertools.combinations(of, 2) for name in of[a].keys() & of[b].keys()})
    if not shared:
        raise EvaluationError(f"no video has the same name in two of {', '.join(models.values())}")
    missing = [name for name in shared if prompts and not texts.get(name)]
    if missing:
        raise EvaluationError(f"{prompts}: has no prompt for {missing[0]} ({len(missing)} are missing)")
    chance = random.Random(seed)
    partial = folder.with_name(f".{folder.name}.partial")  # left by a failure or a kill; the next one begins anew
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "videos").mkdir(parents=True)
    files = {
        (model, name): _stored(of[model][name], partial) for name in shared for model in of
        if name in of[model]
    }  # fmt: skip
    tasks = [
        Task(secrets.token_hex(8), texts.get(name, ""), (files[a, name], files[b, name]), (a, b))
        for name in shared
        for a, b in itertools.combinations(of, 2)
        if (a, name) in files and (b, name) in files
    ]
    chance.shuffle(tasks)
    checks: list[Task] = []
    for name in chance.sample(shared, len(shared)):
        if len(checks) > len(tasks) // SITTING:
            break
        model = chance.choice([model for model in of if (model, name) in files])
        spoilt = f"{secrets.token_hex(8)}.mp4"
        if _spoil(of[model][name], partial / "videos" / spoilt):
            checks.append(Task(secrets.token_hex(8), texts.get(name, ""), (files[model, name], spoilt), None))
    study = Study(
        folder, tuple(of), QUESTIONS | (PROMPT_QUESTION if texts else {}), votes,
        {task.id: task for task in tasks}, {task.id: task for task in checks},
    )  # fmt: skip
    said = {"version": 1, "models": list(of), "questions": study.questions, "votes": votes}
    said |= {"tasks": [asdict(task) for task in tasks], "checks": [asdict(task) for task in checks]}
    (partial / "study.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)
    return study


def _check_playable(video: Video) -> None:
    """Raises EvaluationError for what browsers do not play, as the MPEG-4 part 2 that OpenCV calls mp4v."""
    if not video.where.lower().endswith(PLAYABLE):
        raise EvaluationError(f"{video.where}: browsers play {' and '.join(PLAYABLE)}; convert it first")
    first_frames(video, 1)
    with video.open() as file, av.open(file, mode="r") as container:
        codec = container.streams.video[0].codec.canonical_name
    if codec not in _CODECS:
        raise EvaluationError(f"{video.where}: browsers play {', '.join(_CODECS)}, not {codec}; convert it first")


def _stored(video: Video, folder: Path) -> str:
    """A copy under a name, and with a date, that tells nothing."""
    file = f"{secrets.token_hex(8)}{Path(video.where).suffix.lower()}"
    with video.open() as source, open(folder / "videos" / file, "wb") as target:
        shutil.copyfileobj(source, target)
    os.utime(folder / "videos" / file, (0, 0))
    return file


def _spoil(video: Video, path: Path) -> bool:
    """Write the video in coarse mosaic, unless that would hardly be seen: an attentive rater could not tell."""
    frames = first_frames(video, None)
    height, width = (side - side % 2 for side in frames.pixels.shape[1:3])
    block = max(min(height, width) // _MOSAIC_BLOCKS, 2)
    coarse = (max(width // block, 1), max(height // block, 1))

    def mosaic(picture: np.ndarray) -> np.ndarray:
        small = Image.fromarray(picture).resize(coarse, Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))

    spoilt = np.stack([mosaic(picture) for picture in frames.pixels])
    if np.abs(spoilt.astype(np.int16) - frames.pixels[:, :height, :width]).mean() < _VISIBLE:
        return False
    write_video(torch.unbind(from_bytes(spoilt)), path, fps=frames.fps or 8)
    os.utime(path, (0, 0))
    return True


def _prompts(path: Path) -> dict[str, str]:
    """name -> prompt. Raises EvaluationError."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        split = next((row for row in rows if None in row), None)
        if split is not None:
            raise EvaluationError(f'{path}: {split["name"]}: a prompt with commas stands in "quotes"')
        return {row["name"]: row["prompt"] for row in rows}
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: must be CSV with the columns name and prompt") from error
