"""A small part of what `python -m tests.benchmarks.mutations` does: every broken film ends as clips or as a reason."""

from pathlib import Path

import pytest

from tests.benchmarks.mutations import MUTATIONS, Seen, mutate, run


@pytest.mark.timeout(600)
def test_every_mutated_film_has_an_outcome(tmp_path: Path) -> None:
    seen: Seen = run(tmp_path, files=36)
    assert seen.faults == []
    assert sum(seen.outcomes.values()) == 36
    assert {outcome.split()[0] for outcome in seen.outcomes} == {"ok", "failed"}
    assert len(seen.outcomes) >= 5, "the mutations reach different ends"


def test_a_mutation_is_a_function_of_its_numbers() -> None:
    film = bytes(range(256)) * 64
    for number in range(len(MUTATIONS)):
        assert mutate([film], 7, number) == mutate([film], 7, number)
        assert mutate([film], 7, number)[2] != film
