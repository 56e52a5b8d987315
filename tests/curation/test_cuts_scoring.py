"""The rule by which the cut benchmark counts hits is itself tested."""

import pytest

from tests.benchmarks.cut_scoring import Counts, Span, count, coverage, match

LABELS = [Span("hard", 50, 50), Span("gradual", 100, 120)]


def test_hard_cuts_tolerate_one_frame() -> None:
    for at, hit in ((49, 1), (50, 1), (51, 1), (48, 0), (52, 0)):
        assert count(LABELS[:1], [Span("hard", at, at)])["hard"] == Counts(hit, 1 - hit, 1 - hit)


def test_a_gradual_label_is_hit_inside_its_span_by_any_kind() -> None:
    assert count(LABELS[1:], [Span("hard", 104, 104)])["gradual"] == Counts(1, 0, 0)
    assert count(LABELS[1:], [Span("gradual", 98, 124)])["gradual"] == Counts(1, 0, 0)
    assert count(LABELS[1:], [Span("gradual", 110, 140)])["gradual"] == Counts(0, 1, 1)  # its middle lies outside


def test_one_detection_per_label_and_each_surplus_counts() -> None:
    both = count(LABELS, [Span("hard", 105, 105), Span("hard", 115, 115), Span("hard", 50, 50)])
    assert both == {"hard": Counts(1, 0, 1), "gradual": Counts(1, 0, 0)}


def test_rates_and_coverage() -> None:
    total = Counts(3, 1, 0) + Counts(0, 0, 1)
    assert (total.precision, total.recall, total.f1) == (0.75, 0.75, pytest.approx(0.75))
    pairs, _ = match(LABELS, [Span("gradual", 105, 120)])
    assert coverage(pairs) == 0.75
