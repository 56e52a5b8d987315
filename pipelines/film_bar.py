"""A bar on standard error while films are worked on one by one; nothing where nobody watches."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress


class FilmBar:
    """`with FilmBar(3) as bar: bar.seen(0.5); bar.print("of the first of three films, half is done")`."""

    def __init__(self, films: int) -> None:
        self._films = films
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=films) if self._bar else None
        self.seen(0.0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def seen(self, films: float) -> None:
        """How many films are done, parts of films included."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=films, description=f"{int(films)}/{self._films} films")

    def part(self, film: int) -> Callable[[float], None]:
        """Takes how much of a film (counted from 0) is done, from 0 to 1; those before it are."""
        return lambda share: self.seen(film + share)

    def print(self, text: str, *, error: bool = False) -> None:
        """Print to standard output, or error, with the bar out of the way."""
        if self._bar is not None:
            self._bar.stop()
        click.echo(text, err=error)
        if self._bar is not None:
            self._bar.start()


def _bar() -> "Progress":
    from rich.console import Console  # a tenth of a second, for nothing where nobody watches
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what is printed may go to a file
        redirect_stderr=False,
    )
