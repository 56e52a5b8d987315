"""A spec says what it means: units are written, unknown keys and impossible values are refused by their path."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from curation.weights_remote import LocalWeights
from pipelines.cli import main
from pipelines.curate_cli import resolve
from pipelines.spec import Spec, SpecError, parse_spec
from pipelines.spec_cli import TEMPLATE, command
from pipelines.units import seconds, size_bytes, write_bytes, write_seconds

INPUT: dict[str, Any] = {"input": {"uris": ["films"]}}


def refusal(data: Any) -> str:
    with pytest.raises(SpecError) as error:
        parse_spec(data, "job.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input": {"uris": ""}}, "input.uris.0: String should have at least 1 character"),  # not the current folder
        ({"output": ""}, "output: String should have at least 1 character"),
        ({"clip": {}}, "job.yaml: clip: unknown key; known here: version, input, output"),
        ({"clips": 3}, "job.yaml: clips: takes keys (mode, min, max), not int"),
        ({"clips": {"minimum": "2 s"}}, "clips.minimum: unknown key; known here: mode, min, max"),
        ({"clips": {"min": 2}}, "clips.min: 2 has no unit; write it like '2 s'"),
        ({"clips": {"min": "2 parsecs"}}, "clips.min: '2 parsecs' is not a quantity"),
        ({"clips": {"min": "0 s"}}, "clips: min must be longer than 0 s"),
        ({"clips": {"min": "5 s", "max": "6 s"}}, "clips: max must be at least twice min"),
        ({"clips": {"mode": "clever"}}, "clips.mode: Input should be 'smart', 'keyframe' or 'exact' (got 'clever')"),
        ({"cuts": {"detector": "eyes"}}, "cuts.detector: "),
        ({"input": {}}, "input.uris: is required"),
        ({"input": {"uris": []}}, "input.uris: "),
        ({"shards": {"size": "500"}}, "shards.size: '500' is not a quantity"),
        ({"shards": {"clips": 0}}, "shards.clips: "),
        ({"resources": {"attempts": 0}}, "resources.attempts: "),
        ({"resources": {"timeout": True}}, "resources.timeout: "),
        ({"decision": {"rules": {"motion": {"min": 1}}}}, "no score is called 'motion'"),
        ({"decision": {"rules": {"text_area": {"max": "7%"}}}}, "text_area"),
        ({"decision": {"name": "../up"}}, "decision.name: "),
        ({"decision": {"name": "a" * 101}}, "decision.name: "),
        (
            {"scores": {"text": "off"}, "decision": {"rules": {"text_area": {"max": 0.07}}}},
            "decision.rules.text_area: scores.text is off",
        ),
        ({"gates": {"motion.coarse": {"drop_lowest": "25%"}}}, "gates.motion.coarse: a gate needs an absolute bound"),
        ({"gates": {"text_area": {"max": 0.1}}}, "gates.text_area: no stage comes after"),
        ({"version": 2}, "version: "),
        ({"models": {"profile": "papr"}}, "models.profile: Input should be 'off', 'offline' or 'paper' (got 'papr')"),
        ({"models": {"roles": {"flwo": "rife"}}}, "models: no role is called 'flwo'; known: text, flow"),
        ({"models": {"roles": {"flow": "raft"}}}, "models: flow: no implementation is called 'raft'; known: rife, "),
        ({"models": {"roles": {"flow": "/models/raft.pth"}}}, "flow: profile off has no model for it; name an impl"),
        ({"models": {"roles": {"flow": {"weight": "x"}}}}, "models.roles.flow.weight: unknown key"),
        ({"models": {"roles": {"flow": {"implementation": "rife", "batch": 0}}}}, "models.roles.flow.batch: "),
        ({"models": {"roles": {"aesthetic": {"implementation": "niqe", "batch": 2}}}}, "aesthetic: niqe has no batch"),
        (
            {"resources": {"flow": {"actors": [3, 2]}}},
            "resources.flow.actors: the minimum is above the maximum (got [3, 2])",
        ),
        (
            {"resources": {"flow": {"actors": [1, 2, 3]}}},
            "resources.flow.actors: takes a number of actors from 1 up, or",
        ),
        ({"resources": {"images": {"actors": 0}}}, "resources.images.actors: takes a number of actors from 1 up, or"),
        ({"resources": {"source_actors": "many"}}, "resources.source_actors: takes a number of actors from 1 up, or"),
        ({"scores": {"text": {"actors": [0, 2]}}}, "scores.text.actors: takes a number of actors from 1 up, or"),
        ({"resources": {"flow": {"gpus": 1.5}}}, "resources.flow.gpus: takes a share of one GPU, or a whole number"),
        ({"resources": {"flow": {"gpus": -0.5}}}, "resources.flow.gpus: "),
        ({"models": {"roles": {"text": "craft"}}}, "models: roles.text: the text detector is chosen by scores.text"),
        ({"decision": {"rules": {"motion.flow": {"min": 1}}}}, "decision.rules.motion.flow: models has no flow"),
        (
            {"models": {"profile": "offline"}, "decision": {"rules": {"aesthetic": {"min": 4.5}}}},
            "decision.rules.aesthetic: models.roles.aesthetic is niqe",
        ),
        (
            {"models": {"profile": "offline"}, "decision": {"rules": {"similarity": {"min": 0.2}}}},
            "decision.rules.similarity: models has no caption_spatial and no caption_temporal",
        ),
    ],
)
def test_a_bad_spec_is_refused_with_the_path_of_the_key(change: dict[str, Any], said: str) -> None:
    assert said in refusal(INPUT | change)


def test_what_is_no_mapping_is_refused() -> None:
    assert "a mapping of keys" in refusal(["input"])


def test_the_template_holds_every_key_with_its_default() -> None:
    template = yaml.safe_load(TEMPLATE)
    resolved = yaml.safe_load(parse_spec(template, "template").as_yaml())
    defaults = yaml.safe_load(parse_spec({"input": {"uris": ["films/"]}}, "defaults").as_yaml())
    assert resolved == defaults
    assert template == resolved


def test_the_spec_has_fewer_than_seventy_keys() -> None:
    def count(data: Any) -> int:
        return sum(1 + count(value) for value in data.values()) if isinstance(data, dict) else 0

    assert count(yaml.safe_load(TEMPLATE)) < 70


def test_roles_have_short_forms(tmp_path: Path) -> None:
    roles = {"flow": str(tmp_path / "raft.pth"), "nsfw": False, "similarity": "conse", "caption_merge": "smollm2_135m"}
    spec = parse_spec(INPUT | {"models": {"profile": "paper", "roles": roles}}, "x")
    choices = spec.choices()
    assert "nsfw" not in choices
    assert choices["flow"].implementation.name == "raft_large"
    assert choices["flow"].weights == (LocalWeights(str(tmp_path / "raft.pth")),)
    assert choices["similarity"].implementation.name == "conse"
    assert choices["text"].implementation.name == "craft"
    assert parse_spec(yaml.safe_load(spec.as_yaml()), "again") == spec


def test_off_may_be_written_bare_wherever_it_may_be_written() -> None:
    roles = "roles: {nsfw: {implementation: off}}"
    text = f"{{scores: {{motion: off, text: {{implementation: off}}}}, models: {{profile: off, {roles}}}}}"
    spec = parse_spec(INPUT | yaml.safe_load(text), "x")
    assert (spec.scores.motion, spec.scores.text.implementation, spec.models.profile) == ("off", "off", "off")
    assert spec.models.roles["nsfw"].implementation == "off"
    assert resolve("films", None, ("scores.text.implementation=off",)).scores.text.implementation == "off"


def test_a_profile_says_what_it_has_no_model_for() -> None:
    offline = parse_spec(INPUT | {"models": {"profile": "offline"}}, "x").models
    assert offline.choices().keys() == {"flow", "similarity", "aesthetic", "nsfw"}
    assert [line.partition(":")[2].split(" is off")[0].strip() for line in offline.notes()] == [
        "caption_spatial",
        "caption_temporal",
        "caption_merge",
    ]
    assert parse_spec(INPUT, "x").models.notes() == []
    assert parse_spec(INPUT | {"models": {"profile": "paper"}}, "x").models.notes() == []


def test_a_resolved_spec_means_the_same() -> None:
    spec = parse_spec(
        INPUT | {"clips": {"min": "1.5 s", "max": "1 min"}, "shards": {"size": "3 GiB"}, "scores": {"text": "ppocr"}},
        "x",
    )
    assert parse_spec(yaml.safe_load(spec.as_yaml()), "again") == spec


@given(st.integers(1, 10**7))
def test_quantities_survive_being_written(milliseconds: int) -> None:
    assert seconds(write_seconds(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-9)
    assert size_bytes(write_bytes(milliseconds)) == milliseconds


def test_the_command_line_completes_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: {uris: films}\nclips: {max: 10 s}\n")
    spec = resolve(str(path), "elsewhere", ("clips.min=1 s", "scores.text=off"))
    assert (spec.output, spec.clips.min, spec.clips.max) == ("elsewhere", 1.0, 10.0)
    assert spec.scores.text.implementation == "off"
    assert spec.input.uris == ["films"]
    changes = ("decision.rules.motion.coarse.min=1", "gates.motion.coarse={max: 9}", "decision.rules.camera.in=[pan]")
    with pytest.raises(SpecError, match="there is no label 'pan'"):
        resolve("folder", None, changes)
    dotted = resolve("folder", None, changes[:2])
    assert dotted.decision.rules == {"motion.coarse": {"min": 1}}
    assert dotted.gates == {"motion.coarse": {"max": 9}}
    assert resolve("some/folder", None).input.uris == ["some/folder"]
    with pytest.raises(SpecError, match="KEY=VALUE"):
        resolve("folder", None, ("clips",))


def test_a_spec_may_come_from_standard_input() -> None:
    for text, said in (
        (b"clips: {min: 1 s}\n", "input: is required"),
        (b"[", "not YAML"),
        (b"clips: {}\nclips: {}", "not YAML (line 2: the key 'clips' is there twice)"),
    ):
        result = CliRunner().invoke(main, ["curate", "-"], input=text)
        assert result.exit_code == 2
        assert result.output.startswith(f"clipmill: standard input: {said}")


def test_validate_render_and_schema(tmp_path: Path) -> None:
    good, bad, torn = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "torn.yaml"
    good.write_text("input: {uris: [films]}\n")
    bad.write_text("input: {uris: [films]}\nclips: {min: 2}\n")
    torn.write_text("input: [films\n")
    runner = CliRunner()
    assert runner.invoke(command, ["validate", str(good)]).exit_code == 0
    for path in (bad, torn, tmp_path / "none.yaml"):
        result = runner.invoke(command, ["validate", str(path)])
        assert result.exit_code == 2
        assert result.output.startswith(f"clipmill: {path}: ")
        assert result.output.count("\n") == 1
    rendered = runner.invoke(command, ["render", str(good)]).output
    assert parse_spec(yaml.safe_load(rendered), "rendered") == parse_spec({"input": {"uris": ["films"]}}, "x")
    schema = yaml.safe_load(runner.invoke(command, ["schema"]).output)
    assert schema["properties"].keys() == Spec.model_fields.keys()
    assert schema["additionalProperties"] is False
