"""`clipmill.json`: what a model directory says about itself beyond the weights."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from model.conditioning.motion import MotionBuckets
from model.diffusion.guidance import Guider, LinearPredictionGuider, TrianglePredictionGuider, VanillaCFG
from model.diffusion.sigmas import SIGMA_MAX, SIGMA_MIN

FILE = "clipmill.json"
TASKS = ("text_to_video", "image_to_video", "interpolation", "orbit")
GUIDERS = ("constant", "linear", "triangle")


class ModelDirectoryError(ValueError):
    """A model directory is incomplete or contradicts itself; the message names the file."""


@dataclass(frozen=True)
class ModelDescription:
    """The facts a sampler needs. Sizes in pixels, the rest as named."""

    task: str
    """One of TASKS."""
    frames: int
    """Clip length the weights were trained for."""
    width: int = 1024
    height: int = 576
    fps: float = 7.0
    """Default frame rate to ask for."""
    steps: int = 25
    """Default number of sampling steps."""
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    guider: str = "linear"
    """One of GUIDERS."""
    min_guidance: float = 1.0
    max_guidance: float = 2.5
    augmentation: float = 0.02
    """Default noise on the conditioning frame."""
    motion: MotionBuckets | None = None
    """Motion score to bucket; None where it is not known, as for the published checkpoints."""
    input_scale: str | None = None
    """Kind of the learned c_in (`scale`, `function`); None: the published one."""
    random_weights: bool = False
    """True where nothing was trained: the directory only shows that everything runs."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ModelDirectoryError(f"{FILE}: task {self.task!r}; known tasks: {', '.join(TASKS)}")
        if self.guider not in GUIDERS:
            raise ModelDirectoryError(f"{FILE}: guider {self.guider!r}; known guiders: {', '.join(GUIDERS)}")
        for name, least in (("frames", 2), ("width", 1), ("height", 1), ("steps", 1), ("fps", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) or (name == "fps" and isinstance(value, float) and math.isfinite(value))
            if not whole or value < least:
                raise ModelDirectoryError(f"{FILE}: {name} {value!r}; a number of at least {least} is needed")
        for name in ("sigma_min", "sigma_max", "min_guidance", "max_guidance", "augmentation"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ModelDirectoryError(f"{FILE}: {name} {value!r}; a finite number is needed")
        if self.input_scale not in (None, "scale", "function"):
            raise ModelDirectoryError(f"{FILE}: input_scale {self.input_scale!r}; 'scale', 'function' or null")

    def default_guider(self, min_scale: float | None = None, max_scale: float | None = None) -> Guider:
        """The model's guidance, with other scales where given (the larger one alone for a constant scale).

        A larger scale that is given stays the largest, also below the model's smaller one.
        """
        largest = self.max_guidance if max_scale is None else max_scale
        return make_guider(self.guider, min(self.min_guidance, largest) if min_scale is None else min_scale, largest)

    def to_json(self) -> dict[str, Any]:
        """As clipmill.json holds it."""
        return {"format": 1, **asdict(self), "motion": None if self.motion is None else self.motion.to_json()}

    def save(self, directory: Path) -> None:
        """Write clipmill.json."""
        (directory / FILE).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "ModelDescription":
        """Read clipmill.json.

        Raises:
            ModelDirectoryError: not JSON, another format, or a key that is missing, unknown or of the wrong kind.
        """
        path = directory / FILE
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise ModelDirectoryError(f"{path}: {error}") from error
        return cls.from_json(data, str(path))

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> "ModelDescription":
        """The inverse of to_json; `source` is named in errors.

        Raises:
            ModelDirectoryError: another format, or a key that is missing, unknown or of the wrong kind.
        """
        try:
            data = dict(data)
            if data.pop("format", None) != 1:
                raise ModelDirectoryError(f"{source}: format 1 is needed")
            unknown = set(data) - {field.name for field in fields(cls)}
            if unknown:
                raise ModelDirectoryError(f"{source}: unknown keys {', '.join(sorted(unknown))}")
            if data.get("motion") is not None:
                data["motion"] = MotionBuckets.from_json(data["motion"])
            return cls(**data)
        except ModelDirectoryError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelDirectoryError(f"{source}: {error}") from error


def published_image_to_video(frames: int, **known: float) -> ModelDescription:
    """What is known about a published checkpoint: it is image-to-video, with the steps and guidance of its clip length.

    Args:
        known: other fields that the checkpoint tells, e.g. sigma_max.
    """
    long = frames > 14
    return ModelDescription(
        task="image_to_video",
        frames=frames,
        steps=30 if long else 25,
        min_guidance=1.5 if long else 1.0,
        max_guidance=3.0 if long else 2.5,
        motion=None,  # the map from motion to buckets was never published
        **known,  # type: ignore[arg-type]
    )


def make_guider(kind: str, min_scale: float, max_scale: float) -> Guider:
    """A guider by name: constant (max_scale), linear or triangle (min_scale to max_scale)."""
    if kind == "constant":
        return VanillaCFG(max_scale)
    if kind == "triangle":
        return TrianglePredictionGuider(max_scale, min_scale)
    return LinearPredictionGuider(max_scale, min_scale)
