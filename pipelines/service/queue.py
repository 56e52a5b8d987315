"""Whose turn it is: a limit on running jobs, a share of the cluster for each, and fair order between owners.

Of several jobs on one cluster, each keeps to its own CPUs (`Record.cpus`). Without that, two jobs could each hold some
of the actors that they need and wait for the others for ever.
"""

from collections import Counter
from collections.abc import Sequence

from pipelines.service.record import Record


def next_to_start(queued: Sequence[Record], active: Sequence[Record], limit: int, cpus: float) -> Record | None:
    """The queued job that is to start now; None while there is no room.

    The owner with the fewest active jobs comes first, then the one who has waited longest since a job of theirs was
    started, then the one whose job was submitted first. An owner's own jobs run in the order of their submission.
    A job that does not fit into the CPUs that are left waits, and so do those after it: else small jobs would keep a
    large one waiting for ever.

    Args:
        queued: jobs that wait.
        active: jobs that are starting, running or stopping.
        limit: how many may be active.
        cpus: of the cluster.
    """
    if not queued or len(active) >= limit:
        return None
    running = Counter(record.owner for record in active)
    last_start = {record.owner: record.started or "" for record in sorted(active, key=lambda each: each.started or "")}
    first = min(
        queued,
        key=lambda record: (running[record.owner], last_start.get(record.owner, ""), record.submitted, record.id),
    )
    left = cpus - sum(record.cpus for record in active)
    return first if first.cpus <= left + 1e-6 else None
