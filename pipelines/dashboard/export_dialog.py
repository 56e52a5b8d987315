"""An export that a person watches: how far it is, and a button that ends it."""

import threading
from typing import Any

from nicegui import ui

from pipelines import figures
from pipelines.dashboard.page import background
from pipelines.dataset import Dataset
from pipelines.export import Exported, export


class Cancelled(Exception):
    """The person has ended the export. What is complete stays."""


class Export:
    """`await Export(dataset, name).run()`: what index.json holds, or Cancelled."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset, self.name = dataset, name
        self._done: Exported | None = None
        self._stop = threading.Event()

    async def run(self) -> dict[str, Any]:
        """Write the shards in a thread, with a dialog over the page."""
        with ui.dialog().props("persistent") as dialog, ui.card().style("min-width: 340px"):
            ui.label(f"Writing the shards of {self.name}").style("font-size: 17px; font-weight: 650")
            self._bar = ui.linear_progress(0, show_value=False).props('aria-label="Clips written"')
            self._words = ui.label("looking up the clips …").classes("hint").props('aria-live="polite"')
            ui.button("Cancel", on_click=self.cancel).props("flat no-caps").style("align-self: flex-end")
        timer = ui.timer(0.3, self._show)
        dialog.open()
        try:
            return await background(export, self.dataset, self.name, show=self.note)
        finally:
            timer.cancel()
            dialog.close()

    def cancel(self) -> None:
        """Let the export end after the shard that is being written."""
        self._stop.set()

    def note(self, done: Exported) -> None:
        """What `export` tells after every shard. Raises Cancelled."""
        self._done = done
        if self._stop.is_set():
            raise Cancelled

    def _show(self) -> None:
        if self._stop.is_set():
            self._words.text = "stopping after this shard …"
        elif (done := self._done) is not None and done.total:
            self._bar.value = (done.clips + done.errors) / done.total
            failed = f", {figures.count(done.errors)} could not be" if done.errors else ""
            self._words.text = (
                f"{figures.count(done.clips)} of {figures.count(done.total)} clips, {figures.size(done.bytes)}{failed}"
            )
