"""Rules become bounds, bounds become keep or drop with reasons; nothing that could not be scored is ever a number."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import presets, schema
from curation.decisions import TABLE, decided, outcome, resolve, summary
from curation.rules import RulesError, parse_rules, read_share, write_share
from curation.score_table import SchemaError, ScoreTable


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Clips with the given columns; ids c000, c001, ...; one second each."""
    whole = []
    for i, row in enumerate(rows):
        base = dict.fromkeys(schema.CLIPS.names) | {"clip_id": f"c{i:03d}", "source_id": "s", "duration_s": 1.0}
        whole.append(base | row)
    return pa.Table.from_pylist(whole, schema.CLIPS)


def motion(*values: float | None) -> ScoreTable:
    return ScoreTable(table([{"motion_coarse": v, "motion_coarse_error": "x" if v is None else None} for v in values]))


def kept(scores: ScoreTable, rules: Any) -> list[int]:
    """The clips that the rules keep, by number."""
    rows = pa.Table.from_batches(decided(scores, resolve(scores, parse_rules(rules))), TABLE).to_pylist()
    assert len(rows) == scores.clips
    assert all(row["keep"] == (not row["reasons"]) for row in rows)
    return [int(row["clip_id"][1:]) for row in rows if row["keep"]]


def why(scores: ScoreTable, rules: Any) -> list[list[str]]:
    rows = pa.Table.from_batches(decided(scores, resolve(scores, parse_rules(rules))), TABLE).to_pylist()
    return [row["reasons"] for row in rows]


def test_bounds_are_inclusive() -> None:
    assert kept(motion(0.1, 0.2, 0.3, 0.4), {"motion.coarse": {"range": [0.2, 0.3]}}) == [1, 2]


def test_a_stored_value_equal_to_the_bound_is_kept_although_float32_is_not_exact() -> None:
    stored = float(np.float32(0.07))
    assert stored > 0.07  # compared as doubles it would be dropped
    assert kept(motion(stored), {"motion.coarse": {"max": 0.07}}) == [0]
    assert kept(motion(float(np.nextafter(np.float32(0.07), np.float32(1)))), {"motion.coarse": {"max": 0.07}}) == []


def test_a_share_drops_exactly_that_many_when_values_differ() -> None:
    scores = motion(*[i / 8 for i in (3, 1, 7, 5, 0, 2, 6, 4)])
    assert kept(scores, {"motion.coarse": {"drop_lowest": "25%"}}) == [0, 2, 3, 5, 6, 7]
    assert kept(scores, {"motion.coarse": {"drop_highest": "12.5%"}}) == [0, 1, 3, 4, 5, 6, 7]


def test_clips_tied_at_the_threshold_are_all_kept() -> None:
    assert kept(motion(0, 0, 0, 1), {"motion.coarse": {"drop_lowest": "50%"}}) == [0, 1, 2, 3]
    assert kept(motion(0, 1, 1, 1), {"motion.coarse": {"drop_lowest": "50%"}}) == [1, 2, 3]
    assert kept(motion(1, 1, 1, 0), {"motion.coarse": {"drop_highest": "50%"}}) == [0, 1, 2, 3]


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    permille=st.integers(0, 999),
    side=st.sampled_from(["drop_lowest", "drop_highest"]),
)
def test_a_share_never_drops_more_and_its_resolved_bound_drops_the_same(
    values: list[int], permille: int, side: str
) -> None:
    scores = motion(*[float(v) for v in values])
    bounds = resolve(scores, parse_rules({"motion.coarse": {side: f"{permille / 10}%"}}))
    dropped = len(values) - outcome(scores, bounds).kept[0]
    most = int(Fraction(permille, 1000) * len(values))
    assert dropped <= most
    if len(set(values)) == len(values):
        assert dropped == most
    ordered = sorted(values, reverse=side == "drop_highest")
    edge = ordered[most]
    assert dropped == sum(v < edge if side == "drop_lowest" else v > edge for v in values)
    again = parse_rules({"motion.coarse": bounds[0].resolved()})
    assert kept(scores, again) == kept(scores, {"motion.coarse": {side: f"{permille / 10}%"}})


def test_the_share_of_a_rule_does_not_depend_on_the_other_rules() -> None:
    rows = [{"motion_coarse": i / 8, "camera": "static" if i % 2 else "complex"} for i in range(8)]
    scores = ScoreTable(table(rows))
    alone = resolve(scores, parse_rules({"motion.coarse": {"drop_lowest": "25%"}}))[0]
    beside = resolve(scores, parse_rules({"camera": {"in": ["static"]}, "motion.coarse": {"drop_lowest": "25%"}}))[1]
    assert alone.low == beside.low == 0.25


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_unscored_never_a_value(bad: float) -> None:
    scores = motion(bad, 0.5, 0.6, 0.7, 0.8)
    assert scores.measured["motion.coarse"].scored == 4
    assert scores.measured["motion.coarse"].failed == 1
    assert why(scores, {"motion.coarse": {"min": 0.0, "max": 1.0}})[0] == ["motion.coarse unscored"]
    bound = resolve(scores, parse_rules({"motion.coarse": {"drop_lowest": "25%"}}))[0]
    assert bound.low == pytest.approx(0.6)  # one of the four scored clips, not of the five


@pytest.mark.parametrize("frames", [[], [0.1, None, 0.2], [0.1, math.nan, 0.2], None])
def test_a_frame_without_a_value_makes_the_clip_unscored(frames: Any) -> None:
    scores = ScoreTable(table([{"text_area": frames}, {"text_area": [0.0, 0.0, 0.0]}]))
    assert scores.measured["text_area"].scored == 1
    assert why(scores, {"text_area": {"max": 1.0}}) == [["text_area unscored"], []]


def test_a_value_beside_an_error_does_not_count() -> None:
    scores = ScoreTable(table([{"motion_coarse": 0.9, "motion_coarse_error": "late failure"}, {"motion_coarse": 0.9}]))
    assert why(scores, {"motion.coarse": {"min": 0.1}}) == [["motion.coarse unscored"], []]


def test_on_error_says_where_unscored_clips_go_and_they_are_counted_apart() -> None:
    scores = motion(None, 0.1, 0.9)
    assert kept(scores, {"motion.coarse": {"min": 0.5, "on_error": "keep"}}) == [0, 2]
    assert kept(scores, {"rules": {"motion.coarse": {"min": 0.5}}, "on_error": "keep"}) == [0, 2]
    assert kept(scores, {"motion.coarse": {"min": 0.5}}) == [2]
    counts = summary(scores, resolve(scores, parse_rules({"motion.coarse": {"min": 0.5}})))["rules"]["motion.coarse"]
    assert counts["clips"] == {"scored": 2, "unscored": 1, "dropped_alone": 1}


def test_frames_any_all_and_mean() -> None:
    scores = ScoreTable(table([{"text_area": v} for v in ([0, 0, 0.3], [0.2, 0.2, 0.3], [0, 0, 0], [0.1, 0.1, 0.1])]))
    assert kept(scores, {"text_area": {"max": 0.15}}) == [2, 3]
    assert kept(scores, {"text_area": {"max": 0.15, "frames": "all"}}) == [0, 2, 3]
    assert kept(scores, {"text_area": {"max": 0.09, "frames": "mean"}}) == [2]
    assert kept(scores, {"text_area": {"min": 0.05}}) == [1, 3]
    assert kept(scores, {"text_area": {"min": 0.05, "frames": "all"}}) == [0, 1, 3]


def test_labels_in_and_not_in() -> None:
    scores = ScoreTable(table([{"camera": c} for c in ("static", "zooming", "complex")] + [{"camera_error": "x"}]))
    assert kept(scores, {"camera": {"in": ["static", "horizontal"]}}) == [0]
    assert kept(scores, {"camera": {"not_in": ["complex"], "on_error": "keep"}}) == [0, 1, 3]
    assert why(scores, {"camera": {"in": ["static"]}}) == [[], ["camera label"], ["camera label"], ["camera unscored"]]


def test_every_reason_is_recorded() -> None:
    rows = [{"motion_coarse": 0.01, "text_area": [0.5, 0.5, 0.5], "camera_error": "x"}, {"motion_coarse": 9.0}]
    rules = {"motion.coarse": {"range": [0.1, 2]}, "text_area": {"max": 0.07}, "camera": {"in": ["static"]}}
    assert why(ScoreTable(table(rows)), rules) == [
        ["motion.coarse below", "text_area above", "camera unscored"],
        ["motion.coarse above", "text_area unscored", "camera unscored"],
    ]


def test_a_gated_clip_has_that_reason_only_and_its_missing_scores_are_no_fault() -> None:
    rows = [{"motion_coarse": 0.0, "gate": "motion.coarse"}, {"motion_coarse": 0.5, "text_area": [0.0] * 3}]
    scores = ScoreTable(table(rows))
    rules = {"motion.coarse": {"min": 0.1}, "text_area": {"max": 0.07}}
    assert why(scores, rules) == [["gate:motion.coarse"], []]
    counted = summary(scores, resolve(scores, parse_rules(rules)))
    assert counted["gates"] == {"motion.coarse": 1}
    assert counted["rules"]["text_area"]["clips"] == {"scored": 1, "unscored": 0, "dropped_alone": 0}


def test_no_rules_keep_every_clip() -> None:
    assert kept(motion(None, 0.1), {}) == [0, 1]


def test_a_column_that_is_all_errors_drops_its_clips_as_unscored_or_keeps_them() -> None:
    scores = motion(None, None)
    assert why(scores, {"motion.coarse": {"drop_lowest": "25%"}}) == [["motion.coarse unscored"]] * 2
    assert kept(scores, {"motion.coarse": {"drop_lowest": "25%", "on_error": "keep"}}) == [0, 1]


def test_a_single_clip_survives_any_share() -> None:
    assert kept(motion(0.3), {"motion.coarse": {"drop_lowest": "99.9%"}}) == [0]


def test_an_empty_dataset_decides_to_nothing() -> None:
    assert kept(ScoreTable(schema.CLIPS.empty_table()), {"motion.coarse": {"drop_lowest": "25%"}}) == []


def test_a_score_that_no_clip_was_measured_for_is_refused() -> None:
    with pytest.raises(RulesError, match=r"text_area: no clip .* was measured .*measured: motion\.coarse"):
        resolve(motion(0.1), parse_rules({"text_area": {"max": 0.07}}))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"motion": {"min": 1}}, r"no score is called 'motion'; known: motion\.coarse, "),
        ({"motion.coarse": {"minimum": 1}}, "unknown key 'minimum'; known: min, max"),
        ({"motion.coarse": {"drop_lowest": 25}}, "25 is not a share; write a percentage such as 25%"),
        ({"motion.coarse": {"drop_lowest": "100%"}}, "would drop every clip"),
        ({"motion.coarse": {"drop_lowest": "60%", "drop_highest": "40%"}}, "together would drop every clip"),
        ({"motion.coarse": {"min": math.nan}}, "is not a number"),
        ({"motion.coarse": {"min": True}}, "is not a number"),
        ({"motion.coarse": {"min": float("nan")}}, "nan is not a number"),
        ({"motion.coarse": {"min": 1e300}}, r"min: the number is too large; scores go up to 3.4e\+38"),
        ({"motion.coarse": {"max": -(10**5000)}}, "the number is too large"),
        ({"motion.coarse": {"drop_lowest": "0." + "1" * 30 + "%"}}, "is not a share"),
        ({"camera": {"in": ["static"], "not_in": ["static", "complex"]}}, "nothing would be kept"),
        ({"motion.coarse": {"range": [2, 1]}}, "nothing would be kept"),
        ({"motion.coarse": {"range": 2}}, r"is not \[low, high\]"),
        ({"motion.coarse": {"in": ["static"]}}, "'in' does not fit a score that is a number"),
        ({"motion.coarse": {"frames": "any"}}, "one value per clip"),
        ({"motion.coarse": 0.5}, "expected a mapping"),
        ({"camera": {"min": 1}}, "'min' does not fit a score that is a label; use in, not_in"),
        ({"camera": {"in": "static"}}, "is not a list of labels"),
        (
            {"camera": {"not_in": ["complex", "statik"]}},
            "camera.not_in: there is no label 'statik'; there are",
        ),
        ({"text_area": {"max": 1, "frames": "some"}}, "write one of any, all, mean"),
        ({"rules": {}, "on_error": "skip"}, "write drop or keep"),
        ({"rules": {}, "name": "x"}, "unknown key 'name' beside `rules`"),
        ([1, 2], "expected a mapping"),
        ({"rules": []}, "expected a mapping"),
        ({"rules": False}, "expected a mapping"),
    ],
)
def test_wrong_rules_are_refused_with_the_key_and_the_way_out(rules: Any, message: str) -> None:
    with pytest.raises(RulesError, match=message):
        parse_rules(rules)


@pytest.mark.parametrize("share", ["0.0000001%", "0%", "10%", "99.99999999999999999999%", "33.3%", "0.05%"])
def test_a_share_is_written_as_it_was_read(share: str) -> None:
    assert write_share(read_share(share, "here")) == share


def test_rules_survive_being_written_and_read() -> None:
    rules = parse_rules(
        {
            "motion.coarse": {"drop_lowest": "12.5%", "max": 3},
            "text_area": {"drop_highest": "33.3%", "frames": "mean"},
            "camera": {"not_in": ["complex"], "on_error": "keep"},
        }
    )
    assert parse_rules(rules.as_data()) == rules


@pytest.mark.parametrize(("version", "message"), [(b"0", "older schema version 0"), (b"99", "install a newer one")])
def test_another_schema_version_is_refused(version: bytes, message: str) -> None:
    other = schema.CLIPS.empty_table().replace_schema_metadata({b"clipmill_schema": version})
    with pytest.raises(SchemaError, match=message):
        ScoreTable(other)


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(SchemaError, match="not a table of a Clipmill dataset"):
        ScoreTable(pa.table({"a": [1]}))


def test_a_column_that_an_older_writer_lacks_counts_as_not_measured() -> None:
    older = table([{"motion_coarse": 0.5}]).drop_columns(["text_area", "text_area_error", "text_area_model"])
    scores = ScoreTable(older)
    assert scores.measured["text_area"].not_measured == 1
    assert kept(scores, {"motion.coarse": {"min": 0.1}}) == [0]


def test_the_papers_preset_leaves_out_what_was_not_measured_and_names_it() -> None:
    assert {"paper", "paper-text-7"} <= set(presets.names())
    rules, left_out = presets.fitted("paper", motion(*[i / 8 for i in range(8)]))
    assert [rule.score for rule in rules.rules] == ["motion.coarse"]
    assert rules.rules[0].drop_lowest == Fraction(1, 4)
    assert left_out == ["aesthetic", "similarity", "text_area"]
    with pytest.raises(RulesError, match="there are: offline, paper"):
        presets.read("../secrets")
