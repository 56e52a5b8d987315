"""Configuration files: YAML in, a checked `TrainConfig` out, and templates that explain themselves."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from model.data.shards import CAPTION_COLUMNS
from model.training.config import StageConfig, TrainConfig
from model.training.presets import DOCS, PRESETS, preset

LEAST = {
    "data.workers": 0, "data.prefetch": 1, "data.window_shards": 1,
    "compute.micro_batch": 1, "compute.replicate": 1, "compute.threads": 0, "compute.encode_chunk": 1,
    "saving.every": 1, "saving.keep": 1, "saving.validate_every": 0, "saving.validation_clips": 1,
    "saving.validation_steps": 1, "saving.log_every": 1,
}  # fmt: skip
"""The least value of each whole number that is not a stage's."""

_LONGEST_NAME = 200
"""Bytes of a stage's name: file systems take 255, and its number and temporary endings come on top."""


class ConfigError(Exception):
    """A configuration that cannot be run: the message names the key and the way out."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str | None] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None  # no other kind can be a key: refused below
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> TrainConfig:
    """Read a file.

    Raises:
        ConfigError: not there, not YAML, or an unknown key, a wrong type or an impossible value, with the key's path.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `clipmill train template` prints one to start from") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text (UTF-8); `clipmill train template` prints one to start from") from error
    return parse_config(text, str(path))


def from_anywhere(config: TrainConfig) -> TrainConfig:
    """The same run for a process in another folder: local paths become absolute."""

    def place(path: str) -> str:
        return path if "://" in path else os.path.abspath(path)

    def place_if_there(choice: str) -> str:
        return os.path.abspath(choice) if os.path.exists(choice) else choice

    data, model = config.data, config.model
    lists: Any = {name: tuple(map(place, getattr(data, name))) for name in ("shards", "images", "validation")}
    choices: Any = {
        name: place_if_there(getattr(model, name)) for name in ("start", "autoencoder", "text_encoder", "image_encoder")
    }
    output = place(config.output)
    return replace(config, output=output, data=replace(data, **lists), model=replace(model, **choices))


def parse_config(text: str, source: str = "configuration") -> TrainConfig:
    """The same from a string."""
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: a mapping with `output`, `data` and `stages` is needed")
    raw = dict(raw)
    stages = raw.get("stages") or []
    if not isinstance(stages, list):
        raise ConfigError(f"{source}: stages: a list is needed, such as `- preset: video-256`")
    raw["stages"] = [_with_preset(stage, f"{source}: stages.{i}") for i, stage in enumerate(stages)]
    try:
        config = TypeAdapter(TrainConfig).validate_python(raw)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {_sentence(e)}" for e in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error
    check(config, source)
    return config


def _with_preset(stage: Any, where: str) -> Any:
    """Fill a stage that names a preset with the preset's fields."""
    if not isinstance(stage, Mapping):
        raise ConfigError(f"{where}: a mapping such as `preset: video-256` is needed")
    given = dict(stage)
    name, tiny = given.pop("preset", None), given.pop("tiny", False)
    if name is None:
        if tiny:
            raise ConfigError(f"{where}.tiny: needs a preset")
        return given
    if not isinstance(tiny, bool):
        raise ConfigError(f"{where}.tiny: {tiny!r}; true or false")
    try:
        start = preset(str(name), tiny=tiny)
    except KeyError as error:
        raise ConfigError(f"{where}.preset: {error.args[0]}") from error
    return {f.name: getattr(start, f.name) for f in fields(start)} | given


def _sentence(error: Any) -> str:
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return "unknown key"
    return str(error["msg"])


def check(config: TrainConfig, source: str = "configuration") -> None:
    """What types cannot say.

    Raises:
        ConfigError: names the key.
    """
    for path, least in LEAST.items():
        section, key = path.split(".")
        if (value := getattr(getattr(config, section), key)) < least:
            raise ConfigError(f"{source}: {path}: {value}; at least {least}")
    if config.saving.peak_tflops is not None and not config.saving.peak_tflops > 0:
        raise ConfigError(f"{source}: saving.peak_tflops: {config.saving.peak_tflops}; more than 0, or leave it out")
    if not config.output:
        raise ConfigError(f"{source}: output: empty; name the folder of the run")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"{source}: seed: {config.seed}; 0 or more, below 2**63")
    if not config.stages:
        raise ConfigError(f"{source}: stages: at least one is needed; presets: {', '.join(PRESETS)}")
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"{source}: stages: two have the same name; set `name`")
    for stage in config.stages:
        at = f"{source}: stages.{stage.name}"
        _check_numbers(stage, at)
        if not stage.name or {"/", "\\"} & set(stage.name) or not stage.name.isprintable():
            raise ConfigError(
                f"{source}: stages: name {stage.name!r}: it names a folder; no / and no control characters, not empty"
            )
        if len(os.fsencode(stage.name)) > _LONGEST_NAME:
            raise ConfigError(f"{source}: stages: name {stage.name[:20]}...: at most {_LONGEST_NAME} bytes")
        for key in ("frames", "height", "width", "steps", "global_batch", "learning_rate", "max_grad_norm"):
            if getattr(stage, key) <= 0:
                raise ConfigError(f"{at}.{key}: {getattr(stage, key)}; more than 0 is needed")
        for key in ("drop_context", "drop_concat", "image_share", "ema_decay", "beta1", "beta2"):
            if not 0 <= getattr(stage, key) < 1:
                raise ConfigError(f"{at}.{key}: {getattr(stage, key)}; 0 or more, below 1")
        for key in ("warmup_steps", "weight_decay", "p_std", "augmentation_std"):
            if getattr(stage, key) < 0:
                raise ConfigError(f"{at}.{key}: {getattr(stage, key)}; 0 or more")
        if stage.lora is not None and stage.lora.rank < 1:
            raise ConfigError(f"{at}.lora.rank: {stage.lora.rank}; at least 1")
        if stage.lora is not None and not 0 < stage.lora.alpha < math.inf:
            raise ConfigError(f"{at}.lora.alpha: {stage.lora.alpha}; a finite number above 0")
        _check_captions(stage.caption_weights, at)
        try:
            re.compile(stage.trainable)
        except re.error as error:
            raise ConfigError(f"{at}.trainable: {stage.trainable!r} is no regular expression: {error}") from error
        if not 0 < stage.fps[0] <= stage.fps[1]:
            raise ConfigError(f"{at}.fps: {list(stage.fps)}; two rates above 0, the smaller one first")
        if stage.task != "text_to_video" and stage.frames < 2:
            raise ConfigError(f"{at}.frames: {stage.task} needs at least 2; single images train `text_to_video`")
        if stage.task == "interpolation" and stage.frames < 3:
            raise ConfigError(f"{at}.frames: interpolation needs at least 3: two given and one between")
        if stage.lora is not None and stage.frames == 1:
            raise ConfigError(f"{at}.lora: adapts the temporal layers, which single images leave out; use clips")
        if stage.image_share and stage.task != "text_to_video":
            raise ConfigError(f"{at}.image_share: joint training on images is for text_to_video")
        if stage.lora is not None and stage is not config.stages[-1]:
            after = config.stages[config.stages.index(stage) + 1]
            if after.lora is None:
                raise ConfigError(f"{at}.lora: the full stage {after.name} cannot start from adapters; put it first")
        if stage.global_batch % config.compute.micro_batch:
            raise ConfigError(
                f"{at}.global_batch: {stage.global_batch} is no multiple of compute.micro_batch "
                f"{config.compute.micro_batch}"
            )
    if not config.data.shards:
        raise ConfigError(f"{source}: data.shards: empty; name the shards `clipmill export` wrote")
    if config.compute.exact and config.compute.replicate > 1:
        raise ConfigError(f"{source}: compute.exact: sums over one group of ranks only; set compute.replicate to 1")


def _check_numbers(stage: StageConfig, at: str) -> None:
    """YAML has `.nan` and `.inf`, which no comparison refuses."""
    for each in fields(stage):
        value = getattr(stage, each.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{at}.{each.name}: {number}; a finite number is needed")


def _check_captions(weights: Mapping[str, float], at: str) -> None:
    for kind, weight in weights.items():
        if kind not in CAPTION_COLUMNS:
            raise ConfigError(f"{at}.caption_weights.{kind}: unknown kind; known: {', '.join(CAPTION_COLUMNS)}")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"{at}.caption_weights.{kind}: {weight}; 0 or more")
    if not any(weights.values()):
        raise ConfigError(f"{at}.caption_weights: {dict(weights)}; one must be above 0")


def render(config: TrainConfig) -> str:
    """The whole configuration as YAML, every default written out. Loading it gives the same configuration."""
    return yaml.safe_dump(_plain(config), sort_keys=False, width=110)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def template(presets: Sequence[str], *, tiny: bool) -> str:
    """A commented configuration for a chain of presets, to edit.

    Raises:
        ConfigError: an unknown preset.
    """
    lines = [
        "# A training run: a chain of stages, each starting from the weights of the last.",
        "#   clipmill train validate THIS.yaml     check it against the data and the memory of this machine",
        "#   clipmill train THIS.yaml              run it; run it again to go on where it stopped",
        "#   torchrun --nproc-per-node 8 -m model.train_cli THIS.yaml",
        "",
        "output: runs/my-run",
    ]
    known = {"shards": ["demo-out/shards/default"]} if tiny else {"shards": ["dataset/shards/NAME"]}
    lines += _section("data", known)
    model = {"size": "tiny", "autoencoder": "haar-1", "text_encoder": "untrained", "image_encoder": "untrained"}
    lines += _section("model", model if tiny else {"start": "path/to/stable-diffusion-2-1-base"})
    # Micro-batches of 2, so that two ranks can share a batch of 4.
    compute = {"precision": "fp32", "checkpointing": "none", "micro_batch": 2}
    lines += _section("compute", compute if tiny else {})
    lines += _section("saving", {"every": 50, "validate_every": 100, "validation_steps": 10} if tiny else {})
    lines += ["", "seed: 0", "", "stages:"]
    for name in presets:
        if name not in PRESETS:
            raise ConfigError(f"no preset is called {name!r}; known: {', '.join(PRESETS)}")
        lines.append(f"  # {DOCS[name]}")
        lines.append(f"  - preset: {name}" + ("\n    tiny: true" if tiny else ""))
        stage = preset(name, tiny=tiny)
        docs = field_docs(StageConfig)
        for key in ("steps", "global_batch", "learning_rate", "height", "width", "frames"):
            lines.append(f"    # {docs[key]}")
            lines.append(f"    {key}: {getattr(stage, key)}")
        rest = [f.name for f in fields(StageConfig) if f"    {f.name}:" not in "\n".join(lines[-14:])]
        lines.append("    # and, as the preset has them: " + ", ".join(rest[1:]))
    return "\n".join(lines) + "\n"


def _section(name: str, values: Mapping[str, Any]) -> list[str]:
    cls = _dataclass_of(typing.get_type_hints(TrainConfig)[name])
    lines = ["", f"{name}:"]
    for f in fields(cls):
        lines.append(f"  # {field_docs(cls)[f.name]}")
        given = f.name in values or f.default is not dataclasses.MISSING
        value = _plain(values.get(f.name, None if f.default is dataclasses.MISSING else f.default))
        shown = yaml.safe_dump(value, default_flow_style=True, width=100).strip().removesuffix("...").strip()
        lines.append(f"  {f.name}: {shown}" if given else f"  # {f.name}:")
    return lines


def field_docs(cls: type) -> dict[str, str]:
    """The sentence under each field, on one line."""
    schema = TypeAdapter(cls).json_schema()
    properties = schema.get("properties", {})
    return {f.name: " ".join(properties.get(f.name, {}).get("description", "").split()) for f in fields(cls)}


def _dataclass_of(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return typing.cast(type, hint)
