"""The job spec: what to curate, how, and where to. One YAML file, every key with a default but the input."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from curation import data_files
from curation.implementations import IMPLEMENTATIONS, NO_MODEL
from curation.registry import Choice, choose
from curation.rules import DECISION_NAME, RulesError, parse_rule, parse_rules
from pipelines.units import Bytes, Seconds

if TYPE_CHECKING:
    from curation.source import SourceSettings


class SpecError(Exception):
    """A spec that cannot be run. One line per fault: the key's path, what is wrong, what would be right."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, allow_inf_nan=False)


class Input(_Section):
    uris: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Files, folders (searched recursively for video files), globs, .csv or .parquet lists; local or any fsspec URL."""
    column: str = "uri"
    """Column of the lists that names the source."""

    @field_validator("uris", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def _word_off(value: Any) -> Any:
    return "off" if value is False else value


Off = BeforeValidator(_word_off)
"""Of a key that may be `off`, which YAML 1.1 reads as false when it is written bare."""


class Cuts(_Section):
    detector: Literal["cascade", "transnetv2"] = "cascade"


class Clips(_Section):
    mode: Literal["smart", "keyframe", "exact"] = "smart"
    """smart: copy whole GOPs, re-encode the edges. keyframe: copy only. exact: re-encode all."""
    min: Seconds = 2.0
    max: Seconds = 20.0
    """Longer shots are split evenly."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min <= 0:
            raise ValueError("min must be longer than 0 s")
        if self.max < 2 * self.min:
            raise ValueError("max must be at least twice min, or a shot just above max cannot be split")
        return self


def _checked_actors(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value, value]
    if len(numbers) != 2 or any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError(f"takes a number of actors from 1 up, or [minimum, maximum] (got {value!r})")
    if numbers[0] > numbers[1]:
        raise ValueError(f"the minimum is above the maximum (got {value!r})")
    return value


def _checked_gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"takes a share of one GPU, or a whole number of them (got {value!r})")
    return value


Actors = Annotated[int | tuple[int, int], BeforeValidator(_checked_actors)]
"""How many there are of a stage; or [minimum, maximum], between which Ray adds actors where work waits for them and a
processor is free, and takes idle ones away."""

Gpus = Annotated[float, Field(ge=0), AfterValidator(_checked_gpus)]
"""GPUs of one actor: a share of one, or several whole ones."""


class TextStage(_Section):
    implementation: Annotated[Literal["off", "craft", "ppocr"], Off] = "craft"
    cpus: float = Field(default=1.0, gt=0)
    gpus: Gpus = 0.0
    actors: Actors = 1
    batch: int = Field(default=12, ge=1)
    """Frames per call of the network."""


class Scores(_Section):
    motion: Annotated[Literal["off", "coarse"], Off] = "coarse"
    text: TextStage = TextStage()

    @field_validator("text", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"implementation": value} if isinstance(value, str) or value is False else value


class Role(_Section):
    """Which model plays a role. What is left out is the profile's. Short forms: a name, `off`, or a path to weights."""

    implementation: Annotated[str | None, Off] = None
    weights: str | None = None
    """A file or folder that replaces the published weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    batch: PositiveInt | None = None
    """Items per call of the network; halved where the GPU's memory does not hold them."""


class Models(_Section):
    profile: Annotated[Literal["off", "offline", "paper"], Off] = "off"
    """offline: only weights that come with packages. paper: those of the paper. See `clipmill models list`."""
    roles: dict[str, Role] = Field(default_factory=dict)
    near_duplicates: bool = True
    """Look for clips that are alike, where there are embeddings."""

    @field_validator("roles", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {role: _role(str(role), given) for role, given in value.items()}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if "text" in self.roles:
            raise ValueError("roles.text: the text detector is chosen by scores.text")
        self.choices()
        return self

    def choices(self) -> dict[str, Choice]:
        """The model of every role that is on; `notes` says why others are off."""
        found = self._chosen()
        if not ("caption_spatial" in found or "caption_temporal" in found):
            found.pop("caption_merge", None)
        return found

    def _chosen(self) -> dict[str, Choice]:
        given = {role: each.model_dump(exclude_none=True) for role, each in self.roles.items()}
        found = choose(self.profile, given)
        found.pop("text", None)
        return found

    def notes(self) -> list[str]:
        """What a person who asked for a profile may expect and does not get, one line each."""
        if self.profile == "off":
            return []
        lines = [
            f"models: {role} is off: {reason}"
            for role, reason in NO_MODEL[self.profile].items()
            if role not in self.roles
        ]
        if "caption_merge" in self._chosen() and "caption_merge" not in self.choices():
            lines.append("models: caption_merge is off: there are no captions to merge")
        return lines


def _role(role: str, given: Any) -> Any:
    """The long form of a role: `off`, the name of an implementation, or else a path."""
    if given is False:
        return {"implementation": "off"}
    if not isinstance(given, str):
        return given
    looks_like_a_path = "/" in given or "\\" in given or Path(given).exists()
    if given in IMPLEMENTATIONS.get(role, {}) or given == "off" or not looks_like_a_path:
        return {"implementation": given}
    return {"weights": given}


class Decision(_Section):
    name: str = Field(default="default", pattern=f"^{DECISION_NAME}$")
    rules: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Score -> rule; see `clipmill decide --help`. Nothing is dropped without a rule."""

    @model_validator(mode="after")
    def _followable(self) -> Self:
        try:
            parse_rules(self.rules)
        except RulesError as error:
            raise ValueError(str(error)) from None
        return self


class Shards(_Section):
    write: bool = True
    size: Bytes = 500 * 10**6
    clips: int = Field(default=1000, ge=1)


class Workers(_Section):
    """The actors of one stage."""

    cpus: float = Field(default=1.0, gt=0)
    """Per actor. One that asks for at most 1 shares it where the machine is too small for all stages."""
    gpus: Gpus = 0.0
    actors: Actors = 1


class Resources(_Section):
    cpus: int | None = Field(default=None, ge=1)
    """CPUs that the job may use: of the Ray started for it (by default all of this machine's), or of a cluster that is
    there already (by default all of its, which leaves no room for another job)."""
    source_cpus: float = Field(default=1.0, gt=0)
    """CPUs of one source actor."""
    source_actors: Actors | None = None
    """By default as many as the CPUs that the other stages leave are good for."""
    flow: Workers = Workers()
    captions: Workers = Workers()
    images: Workers = Workers()
    """Embeddings, similarity of captions, aesthetics, NSFW."""
    timeout: Seconds = 3600.0
    """Work on one source longer than this counts as hung."""
    attempts: int = Field(default=3, ge=1)
    """How often a source is tried whose worker process dies."""
    segment: Bytes = 64 * 10**6
    """Clips of one source that travel and are stored together."""
    round: int = Field(default=4096, ge=1)
    """Sources given to Ray Data at a time."""


class Spec(_Section):
    """A job. `input` and `output` may be given on the command line instead."""

    version: Literal[1] = 1
    input: Input
    output: str = Field(default="clipmill-out", min_length=1)
    cuts: Cuts = Cuts()
    clips: Clips = Clips()
    scores: Scores = Scores()
    models: Models = Models()
    gates: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Score -> rule with absolute bounds; a clip that breaks one skips the later, dearer stages."""
    on_error: Literal["drop", "keep"] = "drop"
    """Where the decision puts a clip that has no value for a score that a rule asks for."""
    decision: Decision = Decision()
    shards: Shards = Shards()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _gates_work(self) -> Self:
        for name, rule in self.gates.items():
            try:
                parsed = parse_rule(name, rule)
            except RulesError as error:
                raise ValueError(f"gates: {error}") from None
            if parsed.drop_lowest or parsed.drop_highest:
                raise ValueError(f"gates.{name}: a gate needs an absolute bound; a share is known only at the end")
            if name not in ("motion.coarse", "camera"):
                raise ValueError(f"gates.{name}: no stage comes after this score; use a rule of the decision")
            if self.scores.motion == "off":
                raise ValueError(f"gates.{name}: scores.motion is off")
        for name in self.decision.rules:
            if off := self._off(name):
                raise ValueError(f"decision.rules.{name}: {off}, so no clip has this score")
        return self

    def _off(self, score: str) -> str | None:
        """What is off that would measure a score; None when the job measures it."""
        if score in ("text_area", "watermark"):
            return "scores.text is off" if self.scores.text.implementation == "off" else None
        if score in ("motion.coarse", "camera", "black", "frozen", "picture_area"):
            return "scores.motion is off" if self.scores.motion == "off" else None
        chosen = self.models.choices()
        captioners = {"similarity.spatial": ["caption_spatial"], "similarity.temporal": ["caption_temporal"]}
        if score in ("similarity", *captioners):
            wanted = captioners.get(score, ["caption_spatial", "caption_temporal"])
            if not any(role in chosen for role in wanted):
                return f"models has no {' and no '.join(wanted)}"
        if score in ("aesthetic", "niqe"):
            name = chosen["aesthetic"].implementation.name if "aesthetic" in chosen else "off"
            return (
                f"models.roles.aesthetic is {name}" if (name == "niqe") != (score == "niqe") or name == "off" else None
            )
        if score == "near_duplicate" and not self.models.near_duplicates:
            return "models.near_duplicates is off"
        role = {"motion.flow": "flow", "nsfw": "nsfw"}.get(score, "similarity")
        return None if role in chosen else f"models has no {role}"

    def choices(self) -> dict[str, Choice]:
        """The model of every role that the job has on, the text detector included."""
        found = self.models.choices()
        name = self.scores.text.implementation
        return found if name == "off" else choose("off", {"text": {"implementation": name}}) | found

    def source_settings(self) -> "SourceSettings":
        """What `curation.source` needs to know."""
        from curation.source import SourceSettings  # brings the decoders, which a spec alone does not need

        return SourceSettings(
            detector=self.cuts.detector,
            mode=self.clips.mode,
            min_s=self.clips.min,
            max_s=self.clips.max,
            motion=self.scores.motion != "off",
            gates=tuple(parse_rule(name, rule) for name, rule in self.gates.items()),
            key_frames=bool(set(self.choices()) - {"flow", "caption_temporal", "caption_merge"}),
            small_frames="flow" in self.choices() and self.choices()["flow"].implementation.source_frames,
            segment_bytes=self.resources.segment,
        )

    def as_yaml(self) -> str:
        """The resolved spec: every default written out."""
        data = self.model_dump(mode="json")
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        return text if "\x85" not in text else yaml.safe_dump(data, sort_keys=False)  # PyYAML reads it as a space


def parse_spec(data: Any, where: str) -> Spec:
    """A spec from its YAML data. Raises SpecError with a line per fault; `where` names the file in it."""
    if not isinstance(data, dict):
        raise SpecError(f"{where}: a spec is a mapping of keys, this is {type(data).__name__}")
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError("; ".join(_fault(where, each) for each in error.errors())) from None


def read_spec(path: str | Path) -> Spec:
    """A spec from a YAML file. Raises SpecError when the file or its content is wrong."""
    return parse_spec(read_yaml(path), str(path))


def read_yaml(path: str | Path) -> Any:
    """The data of a YAML file. Raises SpecError."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}") from None
    return read_yaml_text(text, str(path))


def read_yaml_text(text: bytes, where: str) -> Any:
    """The data of a YAML text (JSON is YAML too). Raises SpecError; `where` names the text in it."""
    try:
        return data_files.read_yaml(text)
    except ValueError as error:
        raise SpecError(f"{where}: not YAML ({error})") from None


def _fault(where: str, error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = f"unknown key; known here: {', '.join(_known_keys(error['loc']))}"
    elif error["type"] == "model_type":
        text = f"takes keys ({', '.join(_known_keys((*error['loc'], '')))}), not {type(error['input']).__name__}"
    elif error["type"] == "missing":
        text = "is required"
    elif error["type"] in (
        "literal_error",
        "string_type",
        "int_type",
        "float_type",
        "int_parsing",
        "greater_than_equal",
    ):
        text += f" (got {error['input']!r})"
    return f"{where}: {path}: {text}" if path else f"{where}: {text}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Spec
    for part in location[:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field is not None else None
    return list(getattr(model, "model_fields", {}))
