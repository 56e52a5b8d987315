"""Where an actor leaves word before it ends its own process."""

import ray


@ray.remote(num_cpus=0)
class Ledger:
    """Sources that ran out of time, told by the actors and asked for by the driver."""

    def __init__(self) -> None:
        self._overdue: list[str] = []

    def note_overdue(self, uri: str) -> None:
        """A source's time is up; the process that worked on it ends next."""
        self._overdue.append(uri)

    def overdue(self) -> list[str]:
        """All sources noted so far."""
        return self._overdue
