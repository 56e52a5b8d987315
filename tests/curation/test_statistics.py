"""The sums close, what could not be scored stands apart, and every count agrees with counting by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import schema
from curation.caption_words import captions, origins
from curation.decisions import decided, outcome, resolve
from curation.rules import parse_rules
from curation.score_table import ScoreTable, connect
from curation.source import failed_row
from curation.statistics import PER_SOURCE, open_sources, per_source, statistics
from tests.synthetic import make_dataset

RULES: dict[str, Any] = {
    "motion.coarse": {"drop_lowest": "25%"},
    "text_area": {"max": 0.07},
    "camera": {"in": ["static", "zooming"], "on_error": "keep"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("statistics") / "data", clips=120, media=False)


@pytest.fixture(scope="module")
def scores(folder: Path) -> Iterator[ScoreTable]:
    table = ScoreTable([str(path) for path in sorted((folder / "clips").iterdir())])
    open_sources(table.con, [str(path) for path in sorted((folder / "sources").iterdir())])
    yield table
    table.con.close()
    del table.con  # what outlives the interpreter's last test is reported as a leak


@pytest.fixture(scope="module")
def found(scores: ScoreTable) -> dict[str, Any]:
    return statistics(scores, resolve(scores, parse_rules(RULES)))


@pytest.fixture(scope="module")
def rows(folder: Path, scores: ScoreTable) -> list[dict[str, Any]]:
    """The clips with their reasons, joined without DuckDB."""
    reasons = pa.Table.from_batches(decided(scores, resolve(scores, parse_rules(RULES)))).to_pylist()
    by_id = {row["clip_id"]: row["reasons"] for row in reasons}
    clips = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "clips").iterdir())]).to_pylist()
    return [row | {"reasons": by_id[row["clip_id"]]} for row in clips]


def test_seconds_in_equal_seconds_lost_plus_seconds_kept(found: dict[str, Any]) -> None:
    steps = found["funnel"]["steps"]
    taken = sum(step["seconds"] for step in steps if step["kind"] != "level")
    assert steps[0]["seconds"] == pytest.approx(taken + steps[-1]["seconds"], abs=1e-4)
    assert abs(found["funnel"]["unaccounted_s"]) < 1e-4
    assert taken > 0
    candidates = next(step for step in steps if step["step"] == "candidates")
    dropped = sum(step["clips"] for step in steps if step["kind"] in ("filter", "unscored", "gate"))
    assert candidates["clips"] == dropped + steps[-1]["clips"] == 120


def test_a_missing_second_shows_as_unaccounted(folder: Path) -> None:
    table = ScoreTable([str(path) for path in sorted((folder / "clips").iterdir())])
    sources = pq.read_table(folder / "sources/part-00000.parquet").to_pylist()
    sources[0]["duration_s"] += 2.5
    open_sources(table.con, pa.Table.from_pylist(sources, schema.SOURCES))
    assert statistics(table, [])["funnel"]["unaccounted_s"] == pytest.approx(2.5, abs=1e-4)


def test_the_seconds_of_a_film_that_failed_came_in_and_were_lost(folder: Path) -> None:
    table = ScoreTable([str(path) for path in sorted((folder / "clips").iterdir())])
    sources = pq.read_table(folder / "sources/part-00000.parquet").to_pylist()
    films = sum(row["duration_s"] or 0.0 for row in sources)
    sources.append(failed_row("/films/damaged.mp4", "damaged_frames", "all of it", duration_s=30.0))
    open_sources(table.con, pa.Table.from_pylist(sources, schema.SOURCES))
    funnel = statistics(table, [])["funnel"]
    seconds = {step["step"]: step["seconds"] for step in funnel["steps"]}
    assert seconds["sources"] == pytest.approx(films + 30.0, abs=1e-4)
    assert seconds["lost_error"] == pytest.approx(4 * 0.25 + 30.0)
    assert abs(funnel["unaccounted_s"]) < 1e-4
    assert funnel["steps"][0]["sources"] == 5  # the two others that failed gave no video


def test_each_filter_is_charged_with_what_the_ones_before_left(
    found: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    order = ["motion.coarse below", "motion.coarse unscored", "text_area above", "text_area unscored", "camera label"]
    for step, reason in zip(found["filters"], order, strict=True):
        name = f"{step['filter']} unscored" if step["unscored"] else step["filter"]
        assert reason.startswith(name.removesuffix(" unscored"))
        alone = [row for row in rows if reason in row["reasons"]]
        first = [row for row in alone if row["reasons"][0] == reason]
        only = [row for row in alone if row["reasons"] == [reason]]
        for key, group in (("alone", alone), ("first", first), ("only", only)):
            assert step[key]["clips"] == len(group), (reason, key)
            assert step[key]["seconds"] == pytest.approx(sum(row["duration_s"] for row in group), abs=1e-4)
    assert sum(step["first"]["clips"] for step in found["filters"]) == sum(bool(row["reasons"]) for row in rows)


def test_the_joint_matrix_counts_clips_that_both_drop(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    matrix = np.array(found["joint"]["clips"])
    assert (matrix == matrix.T).all()
    i, j = found["joint"]["filters"].index("text_area"), found["joint"]["filters"].index("camera")
    both = [row for row in rows if {"text_area above", "camera label"} <= set(row["reasons"])]
    assert matrix[i, j] == len(both) > 0
    assert matrix[i, i] == sum("text_area above" in row["reasons"] for row in rows)


@pytest.mark.parametrize(("highest", "end"), [(2.0, 2.0), (900.0, 1.4)])
def test_among_few_clips_the_axis_reaches_the_highest_unless_it_lies_far_out(
    tmp_path: Path, highest: float, end: float
) -> None:
    def change(i: int, row: dict[str, Any]) -> None:
        row["motion_coarse"], row["motion_coarse_error"] = (highest if i == 15 else i / 10), None

    root = make_dataset(tmp_path / "few", clips=16, media=False, change=change)
    table = ScoreTable([str(path) for path in (root / "clips").iterdir()])
    open_sources(table.con, [str(path) for path in (root / "sources").iterdir()])
    try:
        axis = statistics(table, [])["scores"]["motion.coarse"]["histogram"]
    finally:
        table.con.close()
        del table.con
    assert axis["high"] == pytest.approx(end)
    assert axis["beyond"] == (highest > end)
    assert sum(axis["clips"]) == 16


def test_histograms_hold_every_scored_clip_once_and_kept_clips_apart(
    found: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    for name, column in (("motion.coarse", "motion_coarse"), ("text_area", "text_area")):
        score = found["scores"][name]
        assert sum(score["histogram"]["clips"]) == score["scored"] == sum(row[column] is not None for row in rows)
        assert sum(score["histogram"]["kept"]) == sum(not row["reasons"] for row in rows)
        assert score["scored"] + score["failed"] + score["not_measured"] == 120
    low, high = (
        found["scores"]["motion.coarse"]["histogram"]["low"],
        found["scores"]["motion.coarse"]["histogram"]["high"],
    )
    values = [row["motion_coarse"] for row in rows if row["motion_coarse"] is not None]
    by_hand, _ = np.histogram(np.clip(values, low, high), bins=48, range=(low, high))
    assert np.abs(by_hand - found["scores"]["motion.coarse"]["histogram"]["clips"]).sum() <= 2  # rounding at bin edges


def test_quantiles_are_values_that_occur(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    values = sorted(np.float32(row["motion_coarse"]) for row in rows if row["motion_coarse"] is not None)
    quantiles = found["scores"]["motion.coarse"]["quantiles"]
    assert np.float32(quantiles["0"]) == values[0]
    assert np.float32(quantiles["1"]) == values[-1]
    assert np.float32(quantiles["0.5"]) == values[(len(values) - 1) // 2]


def test_labels_are_counted_before_and_after(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for label, counted in found["scores"]["camera"]["labels"].items():
        of = [row for row in rows if row["camera"] == label]
        assert counted["clips"] == len(of)
        assert counted["kept"]["clips"] == sum(not row["reasons"] for row in of)


def test_errors_are_grouped_by_reason_and_failed_sources_are_no_drops(found: dict[str, Any]) -> None:
    assert found["scores"]["motion.coarse"]["errors"] == [
        {"reason": "too_short", "clips": 9, "example": "too_short: one sampled frame"}
    ]
    assert found["sources"]["status"] == {"failed": 2, "ok": 4}
    assert {error["reason"] for error in found["sources"]["errors"]} == {"truncated", "not_video"}


def test_correlation_is_pearsons_over_the_clips_that_have_both(
    found: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    both = [
        (r["motion_coarse"], max(r["text_area"])) for r in rows if r["motion_coarse"] is not None and r["text_area"]
    ]
    expected = np.corrcoef(np.array(both, np.float64).T)[0, 1]
    names = found["correlations"]["scores"]
    value = found["correlations"]["pearson"][names.index("motion.coarse")][names.index("text_area")]
    assert value == pytest.approx(expected, abs=1e-5)


def test_clips_per_source_before_and_after(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    data = found["clips_per_source"]
    assert sum(data["before"]) == sum(data["after"]) == 4
    assert data["mean_before"] == 30
    assert data["mean_after"] == sum(not row["reasons"] for row in rows) / 4


def test_cost_is_processor_time_per_hour_of_video(found: dict[str, Any]) -> None:
    cuts = next(row for row in found["cost"] if row["stage"] == "cuts")
    hours = found["yield"]["in_s"] / 3600
    assert cuts["cpu_s"] == 4.0
    assert cuts["cpu_s_per_video_hour"] == pytest.approx(4.0 / hours, rel=1e-6)
    assert [row["stage"] for row in found["cost"]] == ["probe", "cuts", "clips", "scores"]  # no other one ran


def test_statistics_are_plain_json_without_nan(found: dict[str, Any]) -> None:
    json.dumps(found, allow_nan=False)


def test_an_empty_dataset_has_statistics_too() -> None:
    table = ScoreTable(schema.CLIPS.empty_table())
    open_sources(table.con, schema.SOURCES.empty_table())
    found = statistics(table, resolve(table, parse_rules(RULES)))
    assert found["yield"]["kept_share"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [None, None], [0.0, 0.0, 1e-30]])
def test_degenerate_columns_give_statistics(values: list[float | None]) -> None:
    rows = [
        dict.fromkeys(schema.CLIPS.names)
        | {"clip_id": f"{i}", "source_id": "s", "duration_s": 1.0, "motion_coarse": v}
        | {"motion_coarse_error": None if v is not None else "broken"}
        for i, v in enumerate(values)
    ]
    table = ScoreTable(pa.Table.from_pylist(rows, schema.CLIPS))
    open_sources(table.con, schema.SOURCES.empty_table())
    found = statistics(table, resolve(table, parse_rules({"motion.coarse": {"drop_lowest": "50%"}})))
    json.dumps(found, allow_nan=False)
    scored = [v for v in values if v is not None]
    assert sum(found["scores"]["motion.coarse"].get("histogram", {}).get("clips", [])) == len(scored)


@settings(max_examples=15, deadline=None)
@given(
    clips=st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(0, 3, width=32)),
            st.sampled_from(["static", "complex", None]),
            st.integers(1, 30_000_000),
            st.sampled_from([None, None, "motion.coarse"]),
        ),
        max_size=40,
    ),
    low=st.floats(0, 3),
    on_error=st.sampled_from(["keep", "drop"]),
)
def test_whatever_the_clips_drops_and_kept_add_up(clips: list[Any], low: float, on_error: str) -> None:
    rows = [
        dict.fromkeys(schema.CLIPS.names)
        | {"clip_id": f"{i}", "source_id": "s", "motion_coarse": m, "camera": c, "duration_s": us / 1e6, "gate": g}
        | {"motion_coarse_error": "x" if m is None else None, "camera_error": "x" if c is None else None}
        for i, (m, c, us, g) in enumerate(clips)
    ]
    table = ScoreTable(pa.Table.from_pylist(rows, schema.CLIPS))
    rules = parse_rules({"rules": {"motion.coarse": {"min": low}, "camera": {"in": ["static"]}}, "on_error": on_error})
    result = outcome(table, resolve(table, rules))
    first = [result.total(result.has(result.of(step))) for step in result.steps]
    assert all(n <= len(clips) for n, _ in first)
    assert result.all[0] == len(clips)
    assert result.all[1] == pytest.approx(sum(us for _, _, us, _ in clips) / 1e6)
    dropped = result.total(result.dropped)
    assert dropped[0] + result.kept[0] == len(clips)


def test_the_funnel_of_every_source_adds_up_to_the_whole(
    scores: ScoreTable, found: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    bounds = resolve(scores, parse_rules(RULES))
    sources = pa.Table.from_batches(per_source(scores, bounds), PER_SOURCE).to_pylist()
    assert [source["source_uri"] for source in sources] == sorted(source["source_uri"] for source in sources)
    assert len(sources) == 6
    assert sum(source["kept_clips"] for source in sources) == found["funnel"]["steps"][-1]["clips"]
    for source in sources:
        of = [row for row in rows if row["source_id"] == source["source_id"]]
        assert source["clips"] == len(of)
        assert source["kept_s"] == pytest.approx(sum(row["duration_s"] for row in of if not row["reasons"]), abs=1e-4)


def test_captions_are_counted_in_words() -> None:
    con = connect()
    con.execute(
        "CREATE TABLE t AS SELECT unnest(['A dog runs.', 'the dog''s Éclair, the 2 dogs', '', NULL]) AS caption"
    )
    found = captions(con, ["caption"], "t")["caption"]
    assert found["clips"] == 3
    assert found["words"] == {"min": 0, "median": 3, "max": 6, "mean": 3.0, "total": 9}
    assert found["vocabulary"] == 8  # a, dog, runs, the, dog's, éclair, 2, dogs
    assert next(iter(found["most_common"].items())) == ("the", 2)


def test_origins_of_captions_say_who_wrote_them_what_failed_and_what_was_not_merged() -> None:
    blank: dict[str, Any] = dict.fromkeys(schema.CLIPS.names)
    merged = blank | {"caption_merged": "a dog", "caption_merged_model": "llm"}
    failed = blank | {"caption_merged_error": "no_caption", "caption_merged_model": "llm"}
    rows = [merged, failed, *[merged | {"merge_fallback": reason} for reason in ("same", "new_facts", "same")]]
    table = ScoreTable(pa.Table.from_pylist(rows, schema.CLIPS))
    assert origins(table.con, ["caption_spatial", "caption_merged"]) == {
        "caption_merged": {
            "models": {"llm": 5},
            "errors": [{"reason": "no_caption", "clips": 1, "example": "no_caption"}],
            "fallbacks": {"same": 2, "new_facts": 1},
        }
    }
