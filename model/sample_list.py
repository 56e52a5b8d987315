"""The list of `clipmill sample many`: a CSV with one video per row, checked as a whole before a model is loaded."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import click

_NAME = re.compile(r"[\w][\w .,()-]{0,127}")
_MOST_BYTES = 200  # of the 255 of most file systems; suffixes and the unfinished file's name need some


@dataclass(frozen=True)
class Wanted:
    """One row: the video's name, what it is made of, and its seed."""

    name: str
    prompt: str
    image: Path | None
    seed: int


def read_list(path: Path, *, column: str, seed: int) -> list[Wanted]:
    """The rows of a CSV with the columns `name`, `column` (`prompt` or `image`) and, where it has one, `seed`.

    Args:
        seed: of the first row, where there is no column for it; the next row has the next one.

    Raises:
        click.UsageError: not such a CSV, a row with more columns than the header, a name twice or that can be no file
            name, an image that is not there. Images are named from the list's own folder.
    """

    def wrong(line: int, text: str) -> click.UsageError:
        return click.UsageError(f"{path}, line {line}: {text}")

    found: dict[str, Wanted] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [each for each in ("name", column) if each not in (rows.fieldnames or [])]
            if missing:
                raise wrong(1, f"no column {missing[0]}; this model wants name,{column}")
            for number, row in enumerate(rows):
                name, content = (row[key] or "" for key in ("name", column))
                if None in row:
                    raise wrong(
                        rows.line_num, f'more columns than in line 1; a {column} with commas stands in "quotes"'
                    )
                if not _NAME.fullmatch(name) or name != name.strip():
                    raise wrong(rows.line_num, f"{name!r} can be no file name: letters, digits, spaces and - _ . , ( )")
                if len(name.encode()) > _MOST_BYTES:
                    raise wrong(rows.line_num, f"the name {name} is too long for a file")
                if name in found:
                    raise wrong(rows.line_num, f"the name {name} is there already")
                image = path.parent / content if column == "image" else None
                if not content or (image is not None and not image.is_file()):
                    raise wrong(rows.line_num, f"no {column}" if not content else f"{image}: no such file")
                given = row.get("seed")
                if given and not re.fullmatch(r"\d{1,18}", given):
                    raise wrong(rows.line_num, f"the seed {given!r} is no whole number")
                found[name] = Wanted(name, "" if image else content, image, int(given) if given else seed + number)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: not a CSV ({error})") from error
    if not found:
        raise click.UsageError(f"{path}: holds no rows")
    return list(found.values())
