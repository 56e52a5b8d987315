"""The jobs' datasets, for the dashboard. They come and go with the jobs."""

import threading
from typing import Any

from pipelines.dashboard.datasets import OpenDataset, Registry
from pipelines.dataset import Dataset
from pipelines.service.jobs import JobError, Jobs


class JobDatasets(Registry):
    """A registry that asks the service which datasets there are."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__([])
        self._jobs = jobs
        self._open: dict[tuple[str, str], OpenDataset] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Any:
        names = [job.record.id for job in self._jobs.list()]
        return iter([found for name in names if (found := self.get(name)) is not None])

    def __len__(self) -> int:
        return len(self._jobs.list())

    def get(self, name: str) -> OpenDataset | None:
        try:
            record = self._jobs.get(name).record
        except JobError:
            return None
        with self._lock:
            key = (name, record.epoch)
            if key not in self._open:
                self._open[key] = OpenDataset(name, Dataset(self._jobs.storage(name).root))
            return self._open[key]
