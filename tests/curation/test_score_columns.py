"""Score columns in memory: read right from any files, and every count and rank exact, also over many blocks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import schema
from curation.decisions import marked, outcome, resolve
from curation.rules import parse_rules
from curation.score_columns import ROWS, Ranked, over_blocks, spread
from curation.score_table import ScoreTable

KNOWN = tuple(each for each in schema.SCORES if each.name in ("motion.coarse", "camera", "text_area"))
NAN, INF = math.nan, math.inf


def rows_of(values: Sequence[tuple[Any, Any, Any, Any]]) -> pa.Table:
    """Clips with (motion, camera, text areas, gate); an error stands where a value is the exception's text."""
    rows = []
    for i, (motion, camera, areas, gate) in enumerate(values):
        row = dict.fromkeys(schema.CLIPS.names) | {"clip_id": f"{i:032x}", "source_id": "a", "duration_s": 1.5 + i}
        failed = motion == "failed"
        row |= {
            "motion_coarse": None if failed else motion,
            "motion_coarse_error": "odd: one frame" if failed else None,
        }
        rows.append(row | {"camera": camera, "text_area": areas, "gate": gate})
    return pa.Table.from_pylist(rows, schema.CLIPS)


def test_only_finite_numbers_are_values_whatever_file_they_come_from(tmp_path: Path) -> None:
    first = rows_of([(0.5, "zooming", [0.1, 0.3], None), (NAN, "horizontal", [0.2], None), ("failed", None, [], None)])
    second = rows_of(
        [
            (INF, "static", [0.1, None], "black"),
            (None, "horizontal", [0.3, NAN, 0.1], None),
            (-1.0, "zooming", [0.7, 0.1, 0.4], None),
        ]
    )
    for number, table in enumerate((first, second)):
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    with_fewer = second.drop_columns(["watermark", "watermark_error", "watermark_model"])
    pq.write_table(with_fewer, tmp_path / "part-1.parquet")  # as an older clipmill wrote it
    table = ScoreTable([str(tmp_path / f"part-{number}.parquet") for number in (0, 1)], scores=KNOWN)
    columns = table.columns
    np.testing.assert_array_equal(columns.values["motion.coarse"], np.float32([0.5, NAN, NAN, NAN, NAN, -1]))
    np.testing.assert_array_equal(columns.values["text_area|low"], np.float32([0.1, 0.2, NAN, NAN, NAN, 0.1]))
    np.testing.assert_array_equal(columns.values["text_area|high"], np.float32([0.3, 0.2, NAN, NAN, NAN, 0.7]))
    np.testing.assert_array_almost_equal(columns.values["text_area|mean"], np.float32([0.2, 0.2, NAN, NAN, NAN, 0.4]))
    assert [["", *columns.labels["camera"]][code] for code in columns.values["camera"]] == [
        "zooming", "horizontal", "", "static", "horizontal", "zooming",
    ]  # fmt: skip
    assert columns.gates == ["black"]
    assert columns.gate.tolist() == [0, 0, 0, 1, 0, 0]
    assert columns.us.tolist() == [1.5e6, 2.5e6, 3.5e6, 1.5e6, 2.5e6, 3.5e6]
    measured = table.measured["motion.coarse"]
    assert (measured.scored, measured.failed, measured.not_measured) == (2, 3, 1)
    assert table.provenance(KNOWN[0]).examples == {"odd": "odd: one frame"}
    assert table.con.execute('SELECT count("motion.coarse"), sum("motion.coarse") FROM scores').fetchall() == [
        (2, -0.5)
    ]


@given(
    st.lists(st.one_of(st.sampled_from([0.0, -0.0, 0.5, NAN]), st.floats(width=32, allow_nan=True)), max_size=60),
    st.integers(1, 5),
)
def test_ranks_are_those_of_the_sorted_values(values: list[float], step: int) -> None:
    column = np.array([NAN if math.isinf(value) else value for value in values], np.float32)
    ordered = np.sort(column[~np.isnan(column)])
    ranked = Ranked(column, (0.0, 0.5, 1.0), step)
    assert ranked.count == len(ordered)
    assert [ranked.at(place) for place in range(len(ordered))] == ordered.tolist()
    for bound in ordered:
        assert ranked.below(bound) == (ordered < bound).sum()
        assert ranked.above(bound) == (ordered > bound).sum()


@pytest.fixture(scope="module")
def many() -> ScoreTable:
    """More clips than several blocks hold, so that threads share them."""
    rng = np.random.default_rng(1)
    n = 4 * ROWS + 12_345
    motion = np.round(rng.gamma(1.2, 0.4, n), 2).astype(np.float32)  # many equal values
    none = rng.random(n) < 0.1
    camera = np.array(["static", "horizontal", "zooming"])[rng.integers(0, 3, n)]
    columns = {
        "clip_id": pa.array(np.char.zfill(rng.permutation(n).astype(str), 32)),
        "source_id": pa.array((np.arange(n) // 7).astype(str)),
        "duration_s": pa.array(np.round(rng.uniform(1, 9, n), 3)),
        "gate": pa.array(np.full(n, "black"), mask=rng.random(n) > 0.05),
        "motion_coarse": pa.array(motion, mask=none),
        "camera": pa.array(camera),
    }
    arrays = [columns[f.name] if f.name in columns else pa.nulls(n, f.type) for f in schema.CLIPS]
    return ScoreTable(pa.Table.from_arrays(arrays, schema=schema.CLIPS), scores=KNOWN)


def test_counts_over_many_blocks_are_what_duckdb_says(many: ScoreTable) -> None:
    rules = parse_rules({"motion.coarse": {"drop_lowest": "25%", "max": 1.5}, "camera": {"not_in": ["horizontal"]}})
    bounds = resolve(many, rules)
    motion = f"motion_coarse >= {bounds[0].low}::FLOAT AND motion_coarse <= 1.5::FLOAT"
    condition = f"gate IS NULL AND {motion} AND camera != 'horizontal'"
    clips, seconds = many.con.execute(f"SELECT count(*), sum(duration_s) FROM clips WHERE {condition}").fetchall()[0]
    kept = outcome(many, bounds).kept
    assert kept[0] == clips
    assert kept[1] == pytest.approx(seconds, abs=1e-6)
    ordered = np.sort(np.asarray(many.columns.values["motion.coarse"]))
    ordered = ordered[~np.isnan(ordered)]
    assert bounds[0].low == pytest.approx(float(ordered[len(ordered) // 4]))
    with marked(many, bounds) as marks:
        assert many.con.execute(f"SELECT sum(keep) FROM {marks.relation}").fetchall() == [(clips,)]
        for reason in marks.reasons:
            bits = int(np.count_nonzero(marks.has(reason)))
            assert bits == outcome(many, bounds).total(outcome(many, bounds).has([reason]))[0]


def test_more_reasons_than_a_table_has_bits_give_the_same_counts(
    many: ScoreTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = resolve(many, parse_rules({"motion.coarse": {"min": 0.2, "max": 1.0}, "camera": {"in": ["static"]}}))
    dense = outcome(many, bounds)
    monkeypatch.setattr("curation.decisions._DENSE_BITS", 0)
    grouped = outcome(many, bounds)
    for name in ("masks", "clips", "us"):
        np.testing.assert_array_equal(getattr(dense, name), getattr(grouped, name))


def test_a_choice_of_places_is_spread_and_grows_without_changing() -> None:
    where = np.zeros(10_000, bool)
    where[2_000:9_000] = True
    few, more = spread(where, 20), spread(where, 60)
    assert more[:20] == few
    assert all(where[place] for place in more)
    assert max(np.diff(sorted([2_000, *more, 9_000]))) < 400
    assert sorted(spread(where, 10**6)) == list(range(2_000, 9_000))


def test_blocks_are_answered_in_order() -> None:
    rows = 6 * ROWS + 1
    found = over_blocks(rows, lambda block: (block.start, block.stop))
    assert [start for start, _ in found] == list(range(0, rows, ROWS))
    assert found[-1] == (6 * ROWS, rows)
