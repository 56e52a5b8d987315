"""Numbers for a person: what rounds up to the next unit is written in it, and what is no number is a dash."""

import math

import pytest

from pipelines.figures import clock, count, marks, percent, size, value


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.94, "59.9 s"), (59.97, "1 min 00 s"), (3599.4, "59 min 59 s"), (3599.7, "1 h 00 min"), (-0.01, "0.0 s")],
)
def test_a_duration_below_a_units_step(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (999.4, "999"),
        (999.7, "1\u202f000"),
        (-999.7, "-1\u202f000"),
        (12345.6, "12\u202f346"),
        (0.07, "0.07"),
        (-0.0, "0"),
        (1.5e-7, "1.5e-07"),
    ],
)
def test_a_score_below_a_thousand(number: float, shown: str) -> None:
    assert value(number) == shown


@pytest.mark.parametrize(
    ("number_bytes", "shown"),
    [(999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (10**9 - 1, "1.0 GB")],
)
def test_a_size_below_a_units_step(number_bytes: int, shown: str) -> None:
    assert size(number_bytes) == shown


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(nothing: float | None) -> None:
    assert [write(nothing) for write in (clock, count, percent, value)] == ["–"] * 4


def test_nothing_is_never_negative() -> None:
    assert [count(-0.4), percent(-0.0), clock(-0.0)] == ["0", "0.0 %", "0.0 s"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.25, 0.2525), (0.0, 1.1), (-1e9, 1e9), (0.0, 3e6), (999.0, 1003.0), (-5e-5, 0)]
)
def test_an_axis_says_the_numbers_that_stand_there_and_has_room_for_them(low: float, high: float) -> None:
    """0.2505 was called 0.251, and 0.251 nothing; -1 000 000 000 stood over -500 000 000."""
    found = marks(low, high)
    assert len(found) >= 2
    for place, text in found:
        assert float(text.replace("\u202f", "")) == pytest.approx(place, abs=(high - low) / 100)
    assert sum(len(text) for _, text in found) < 40
    assert len({text for _, text in found}) == len(found)
