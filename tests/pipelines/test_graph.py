"""The graph of stages, without Ray: which actor gets which model."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from curation.registry import Choice
from pipelines.graph import _scoring
from pipelines.preflight import plan_pools
from pipelines.spec import parse_spec


def choices_in(arguments: Any) -> Iterator[Choice]:
    if isinstance(arguments, Choice):
        yield arguments
    elif isinstance(arguments, Mapping):
        yield from choices_in(tuple(arguments.values()))
    elif isinstance(arguments, tuple):
        for each in arguments:
            yield from choices_in(each)


@pytest.mark.parametrize("profile", ["offline", "paper"])
def test_every_model_is_loaded_in_one_stage(profile: str) -> None:
    spec = parse_spec({"input": {"uris": ["a.mp4"]}, "models": {"profile": profile}}, "test")
    stages = _scoring(spec, plan_pools(spec, 16))
    loaded = Counter(choice.role for _, arguments, _ in stages for choice in choices_in(arguments))
    assert loaded == dict.fromkeys(spec.choices(), 1)


@pytest.mark.parametrize(
    ("models", "stages"),
    [
        ({"profile": "paper"}, ["FlowActor", "CaptionActor", "ImageActor", "TextActor"]),
        ({"profile": "offline"}, ["FlowActor", "ImageActor", "TextActor"]),
        ({"profile": "off", "roles": {"caption_spatial": "coca_vit_l14"}}, ["CaptionActor", "TextActor"]),
        ({"profile": "off"}, ["TextActor"]),
    ],
)
def test_stages_that_are_on_in_their_order(models: dict[str, Any], stages: list[str]) -> None:
    spec = parse_spec({"input": {"uris": ["a.mp4"]}, "models": models}, "test")
    assert [actor.__name__ for actor, _, _ in _scoring(spec, plan_pools(spec, 16))] == stages
