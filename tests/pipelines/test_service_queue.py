"""Whose turn it is: nobody waits behind somebody else's long list, and nothing is started that does not fit."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.service.queue import next_to_start
from pipelines.service.record import Record


def record(name: str, owner: str, at: int, cpus: float = 1.0, **more: object) -> Record:
    return Record(name, owner, f"2026-01-01T00:00:{at:02d}Z", cpus, **more)  # type: ignore[arg-type]


def order(queued: list[Record], limit: int, cpus: float) -> list[str]:
    """The order in which jobs start when the one that runs longest always ends next."""
    active: list[Record] = []
    started: list[str] = []
    clock = 0
    while queued:
        chosen = next_to_start(queued, active, limit, cpus)
        if chosen is None:
            assert active, "nothing runs, and yet nothing is started"
            active.pop(0)
            continue
        clock += 1
        queued.remove(chosen)
        active.append(chosen.but(started=f"{clock:04d}", launched=True))
        started.append(chosen.id)
    return started


def test_owners_take_turns() -> None:
    queued = [record(f"a{k}", "ann", k) for k in range(4)] + [record(f"b{k}", "bob", 10 + k) for k in range(2)]
    assert order(queued, limit=2, cpus=8) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_large_job_is_not_passed_by_small_ones_for_ever() -> None:
    active = [record("r", "ann", 0, cpus=2, started="1", launched=True)]
    queued = [record("large", "bob", 1, cpus=4), record("small", "ann", 2, cpus=1)]
    assert next_to_start(queued, active, limit=3, cpus=4) is None
    assert next_to_start(queued, [], limit=3, cpus=4) == queued[0]


jobs = st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.integers(0, 59), st.integers(1, 4)), max_size=12)


@given(jobs=jobs, limit=st.integers(1, 4), cpus=st.integers(4, 8))
def test_every_job_starts_and_an_owners_jobs_start_in_order(
    jobs: list[tuple[str, int, int]], limit: int, cpus: int
) -> None:
    queued = [record(f"{k:02d}", owner, at, share) for k, (owner, at, share) in enumerate(jobs)]
    started = order(list(queued), limit, cpus)
    assert sorted(started) == [each.id for each in queued]
    for owner in {each.owner for each in queued}:
        mine = sorted((each for each in queued if each.owner == owner), key=lambda each: (each.submitted, each.id))
        assert [name for name in started if name in {each.id for each in mine}] == [each.id for each in mine]
