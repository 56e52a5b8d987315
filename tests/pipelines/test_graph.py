"""The graph of stages: which actor gets which model, and what Ray is told of each pool. Nothing runs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import ray
from ray.data import DataContext

from curation.registry import Choice
from pipelines.graph import _scoring, build
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


def told(dataset: ray.data.Dataset) -> dict[str, tuple[int, int, dict[str, Any]]]:
    """Of each stage: minimum and maximum of its actors, and what Ray reserves for one."""
    found, operator = {}, dataset._logical_plan.dag
    while operator.input_dependencies:
        size = operator.compute
        found[operator.fn.__name__] = (size.min_size, size.max_size, operator.ray_remote_args)
        operator = operator.input_dependencies[0]
    return found


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_cluster")
def test_ray_is_told_of_minimum_maximum_and_shares_of_gpus() -> None:
    resources = {"cpus": 8, "flow": {"actors": [1, 4], "gpus": 0.25}, "images": {"cpus": 0.5}}
    text = {"implementation": "ppocr", "gpus": 1, "actors": 2}
    data = {"input": {"uris": ["a.mp4"]}, "models": {"profile": "offline"}, "scores": {"text": text}}
    spec = parse_spec(data | {"resources": resources}, "test")
    pools = plan_pools(spec, 8, gpus=3)
    stages = told(build([f"{k}.mp4" for k in range(3)], spec, pools, "out", None))
    assert {name: (least, most) for name, (least, most, _) in stages.items()} == {
        "SourceActor": (1, 3), "FlowActor": (1, 4), "ImageActor": (1, 1), "TextActor": (2, 2), "WriterActor": (1, 1),
    }  # fmt: skip
    assert {name: asked["num_gpus"] for name, (_, _, asked) in stages.items() if asked.get("num_gpus")} == {
        "FlowActor": 0.25, "TextActor": 1,
    }  # fmt: skip
    assert stages["ImageActor"][2]["num_cpus"] == 0.5
    assert DataContext.get_current().execution_options.resource_limits.cpu == 8
    build(["a.mp4"], parse_spec(data, "test"), plan_pools(parse_spec(data, "test"), 8, gpus=2), "out", None)
    assert DataContext.get_current().execution_options.resource_limits.cpu == float("inf")


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_cluster")
def test_jobs_share_the_object_store_as_they_share_the_processors() -> None:
    cpus = ray.cluster_resources()["CPU"]
    whole = parse_spec({"input": {"uris": ["a.mp4"]}, "scores": {"text": "off"}}, "test")
    part = parse_spec(whole.model_dump() | {"resources": {"cpus": 1}}, "test")
    for spec, share in ((whole, 0.5), (part, 0.5 / cpus)):
        build(["a.mp4"], spec, plan_pools(spec, 8), "out", None)
        assert DataContext.get_current().override_object_store_memory_limit_fraction == pytest.approx(share)
