"""Plans of corpora: arithmetic that can be checked by hand, on rates that a dataset has measured."""

from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from curation.schema import CLIPS, SOURCES
from curation.segment import parquet_bytes
from pipelines.cli import main
from pipelines.dataset import Dataset
from pipelines.plan import Node, PlanError, make_plan, measured
from pipelines.spec import parse_spec


@pytest.fixture
def sample(tmp_path: Path) -> Dataset:
    """100 s of video: 10 s of probing, cuts and so on, 40 s of text."""
    dataset = Dataset(tmp_path / "sample")
    row = {"source_uri": "a", "source_id": "a", "status": "ok", "duration_s": 100.0, "clips": 10, "kept_s": 80.0}
    row |= {"probe_s": 1.0, "cuts_s": 5.0, "clips_s": 3.0, "scores_s": 1.0, "text_s": 40.0}
    failed = {"source_uri": "b", "status": "failed", "duration_s": 5.0, "clips": 0, "cuts_s": 99.0}
    dataset.storage.write("sources/part-00000.parquet", parquet_bytes(pa.Table.from_pylist([row, failed], SOURCES)))
    clips = [{"clip_id": str(k), "source_id": "a", "start_pts": k, "media_size": 1000} for k in range(10)]
    dataset.storage.write("clips/part-00000.parquet", parquet_bytes(pa.Table.from_pylist(clips, CLIPS)))
    return dataset


def spec(**scores: object):  # type: ignore[no-untyped-def]
    return parse_spec({"input": {"uris": ["x"]}, "scores": scores}, "test")


def test_a_plan_adds_up(sample: Dataset) -> None:
    rates = measured(sample)
    assert rates.cpu_s == pytest.approx({"probe": 0.01, "cuts": 0.05, "clips": 0.03, "scores": 0.01, "text": 0.4})
    plan = make_plan(spec(), rates, video_hours=1000, node=Node(cpus=10, price_per_hour=2.0), nodes=10)
    assert plan.cpu_hours == pytest.approx(500)
    groups = {group.name: group for group in plan.groups}
    assert groups["text"].cpu_hours == pytest.approx(400)
    assert (groups["text"].actors, groups["text"].hours) == (1, pytest.approx(400))
    assert (plan.bottleneck, plan.hours) == ("text", pytest.approx(400))
    assert plan.balanced_hours == pytest.approx(5)
    assert (groups["text"].balanced, groups["sources"].balanced) == (80, 20)
    assert plan.cost == pytest.approx(5 * 10 * 2)
    assert (plan.clips, plan.clip_hours, plan.clip_bytes) == pytest.approx((360_000, 800, 360_000_000))


def test_a_stage_that_the_spec_has_off_is_not_planned(sample: Dataset) -> None:
    plan = make_plan(spec(text="off"), measured(sample), 1000, Node(cpus=10), within_h=6)
    assert plan.cpu_hours == pytest.approx(100)
    assert sum(group.cpu_hours for group in plan.groups) == pytest.approx(100)
    assert plan.nodes == 2


def test_the_nodes_follow_from_the_time(sample: Dataset) -> None:
    plan = make_plan(spec(), measured(sample), 1000, Node(cpus=10), within_h=6)
    assert plan.nodes == 9
    assert plan.balanced_hours <= 6


def test_a_pool_that_grows_is_planned_with_its_maximum(sample: Dataset) -> None:
    plan = make_plan(
        spec(text={"implementation": "craft", "actors": [1, 80]}), measured(sample), 1000, Node(10), nodes=10
    )
    groups = {group.name: group for group in plan.groups}
    assert (groups["text"].actors, groups["text"].hours) == (80, pytest.approx(5))
    assert plan.hours == plan.balanced_hours == pytest.approx(5)


def test_what_was_not_measured_is_not_guessed(sample: Dataset, tmp_path: Path) -> None:
    rates = measured(sample)
    without = {stage: rate for stage, rate in rates.cpu_s.items() if stage != "text"}
    with pytest.raises(PlanError, match="text did not run in the measured dataset"):
        make_plan(spec(), type(rates)(without, 0.1, 0.8, 100, 100), 1, Node())
    with pytest.raises(PlanError, match="too few CPUs"):
        make_plan(spec(), rates, 1, Node(cpus=1))
    with pytest.raises(PlanError, match="no finished source"):
        measured(Dataset(tmp_path / "nothing"))


def test_the_command_plans_the_papers_corpus(sample: Dataset, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: {uris: films}\n")
    arguments = ["plan", str(tmp_path / "job.yaml"), "--measured", str(sample)]
    result = CliRunner().invoke(main, [*arguments, "--years", "212", "--within", "30", "--price", "1"])
    assert result.exit_code == 0, result.output
    text = result.output.replace("\u202f", "")
    assert "1858392 h of video, 929196 processor hours" in text
    assert "on 81 nodes; text holds it up" in text
    assert "29.9 days, costs 58075" in text
    assert "as the spec is     85 years on" in text
    assert "first set scores.text.actors to 1037" in text
    assert max(map(len, text.splitlines())) < 100, "no column is broken into two lines"
    assert CliRunner().invoke(main, arguments).output == ("clipmill: say how much video there is: --years or --hours\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hours", "nan"], "'nan' is not a number"),
        (["--hours", "inf"], "inf is not in the range"),
        (["--hours", "1e-320"], "is not in the range"),
        (["--years", "1e300"], "1e+300 is not in the range"),
        (["--hours", "1", "--price", "nan"], "'nan' is not a number"),
        (["--hours", "1", "--within", "1e-320"], "is not in the range"),
        (["--hours", "1e13", "--within", "0.001", "--node-cpus", "1e5", "--price", "1e9"], None),
        (["--hours", "1e13", "--within", "0.001", "--node-cpus", "1"], None),
        (["--hours", "0.001", "--nodes", "1000000", "--price", "0"], None),
    ],
)
def test_numbers_beyond_all_corpora_are_refused_and_others_planned(
    sample: Dataset, tmp_path: Path, options: list[str], message: str | None
) -> None:
    (tmp_path / "job.yaml").write_text("input: {uris: films}\n")
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "job.yaml"), "--measured", str(sample), *options])
    assert result.exit_code == (2 if message else 0), result.output
    assert (message or "comes out") in result.output
