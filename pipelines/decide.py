"""Decisions of a dataset: thresholds applied to its scores and written beside them. No frame is decoded.

    decisions/NAME.parquet   clip_id, keep, reasons (`curation.decisions.TABLE`), sorted by clip_id; in its metadata
                             the rules, what they resolved to, and counts
    decisions/NAME.yaml      these again, for people

The Parquet file is the decision: it appears whole, under one name, by one rename or upload, so that neither a full disk
nor a kill nor two processes that save at once can mix the rules of one decision with the clips of another. Readers in
this package look at it alone. The YAML file is a copy that follows it; it goes before the Parquet file is replaced, so
that a kill in between leaves none, not one of another decision.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from curation import decisions
from curation.data_files import read_yaml
from curation.reasons import Bound
from curation.rules import DECISION_NAME, Rules, parse_rules
from curation.score_table import SchemaError, ScoreTable, connect, view_clips
from curation.statistics import open_sources
from pipelines.dataset import Dataset

_COMPACTED = re.compile(r"part-\d{5}\.parquet")
_RECORD = b"clipmill_decision"  # key of the Parquet file's metadata


class DatasetError(ValueError):
    """A dataset or a decision that cannot be used. The message is one plain sentence with the way out."""


def open_scores(dataset: Dataset) -> ScoreTable:
    """The scores and sources of a dataset as of now; rows of sources that are not committed do not count.

    Raises:
        DatasetError: the path is not a dataset.
        SchemaError: its tables are of another schema version.
    """
    clips, sources = _tables(dataset)
    with _readable(dataset):
        table = ScoreTable(clips)
        open_sources(table.con, sources)
    return table


def open_clips(dataset: Dataset) -> duckdb.DuckDBPyConnection:
    """A connection with the relation `clips` of `curation.score_table`, without the scores in memory.

    Raises DatasetError or SchemaError, as `open_scores` does.
    """
    clips, _ = _tables(dataset)
    con = connect()
    with _readable(dataset):
        view_clips(con, clips)
    return con


def _tables(dataset: Dataset) -> tuple[list[str] | pa.Table, list[str] | pa.Table]:
    """The clips and the sources: as files where nobody is going to change those, else as they are now."""
    if not dataset.storage.exists():
        raise DatasetError(f"{dataset} does not exist")
    parts, source_parts = dataset.part_files("clips"), dataset.part_files("sources")
    if not parts and not source_parts and not dataset.storage.exists("job.yaml"):
        raise DatasetError(f"{dataset} is not a Clipmill dataset: it has neither job.yaml nor sources/ nor clips/")
    if dataset.storage.is_local and all(_COMPACTED.fullmatch(name) for name in [*parts, *source_parts]):
        clips = [dataset.storage.path(f"clips/{name}") for name in parts]
        return clips, [dataset.storage.path(f"sources/{name}") for name in source_parts]
    with _readable(dataset):
        return dataset.clips(), dataset.sources()


@contextmanager
def _readable(dataset: Dataset) -> Iterator[None]:
    """Say in a sentence that tables cannot be read."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, duckdb.Error) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{dataset}: its tables cannot be read ({str(error).splitlines()[0]})") from None


def check_name(name: str) -> str:
    """`name`, when it can be a file name everywhere. Raises DatasetError."""
    if not re.fullmatch(DECISION_NAME, name):
        raise DatasetError(f"{name!r} cannot name a decision: use letters, digits, and - _ . after the first letter")
    return name


def names(dataset: Dataset) -> list[str]:
    """The decisions of a dataset, sorted."""
    there = dataset.storage.list("decisions")
    return [name.removesuffix(".parquet") for name in there if name.endswith(".parquet")]


def read_decision(dataset: Dataset, name: str) -> dict[str, Any]:
    """What was decided: rules, resolved values, counts. Raises DatasetError, naming the decisions there are or what is
    wrong with this one."""
    if not dataset.storage.exists(f"decisions/{check_name(name)}.parquet"):
        if not dataset.storage.exists():
            raise DatasetError(f"{dataset} does not exist")
        there = ", ".join(names(dataset)) or "none yet; make one with `clipmill decide`"
        raise DatasetError(f"{dataset} has no decision called {name!r}; there are: {there}")
    try:
        data = read_yaml(_record(dataset, name))
        well = all("rule" in entry and "resolved" in entry for entry in data["rules"].values())
    except (ValueError, AttributeError, KeyError, TypeError):  # Arrow's faults are ValueErrors
        well = False
    if not well:
        raise DatasetError(
            f"{dataset}: decisions/{name}.parquet is not a decision of this version: decide {name!r} again"
        )
    return {**data, "name": name}  # the file may have been copied under another name


def _record(dataset: Dataset, name: str) -> bytes:
    """The YAML text in a decision's Parquet file. Raises KeyError when it holds none."""
    storage = dataset.storage
    storage.fs.invalidate_cache()  # of an object store: another process may have replaced the file by a longer one
    with storage.fs.open(storage.path(f"decisions/{name}.parquet"), "rb") as file:
        metadata: dict[bytes, bytes] = pq.read_schema(file).metadata or {}
    return metadata[_RECORD]


def bounds_of(scores: ScoreTable, decision: dict[str, Any]) -> list[Bound]:
    """The recorded bounds of a decision, as they were resolved then, with the rules as they were given."""
    given = {score: entry["rule"] for score, entry in decision["rules"].items()}
    found = []
    for rule in parse_rules(given).rules:
        resolved, measured = decision["rules"][rule.score]["resolved"], scores.measured[rule.score]
        low, high = resolved.get("min"), resolved.get("max")  # may have crossed where a share met a bound
        found.append(Bound(rule, low, high, measured.scored, measured.unscored))
    return found


def outdated(scores: ScoreTable, bounds: Sequence[Bound], decision: dict[str, Any]) -> bool:
    """Whether a decision's recorded bounds say something else of the clips of now than it recorded."""
    if decision["clips"]["candidates"] != scores.clips:
        return True
    return decision.get("digest") not in (None, decisions.digest(scores, bounds))  # None: of an older clipmill


def decide(dataset: str | Dataset, rules: Any, name: str) -> dict[str, Any]:
    """Apply rules to every clip and record the decision. Returns what decisions/NAME.yaml says.

    `rules`: `curation.rules.Rules`, or their YAML data, `{rules: ..., on_error: ...}` or the mapping of scores itself.

    Raises:
        RulesError: the rules are wrong, or ask for a score that this dataset does not have.
        DatasetError: there is no such dataset, or the name is no file name.
        SchemaError: the dataset is of another schema version.
    """
    where = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    return write_decision(where, open_scores(where), parse_rules(rules), name)


def write_decision(dataset: Dataset, scores: ScoreTable, rules: Rules, name: str) -> dict[str, Any]:
    """`decide` on scores that are open already."""
    check_name(name)
    rules = parse_rules(rules.as_data())  # those of a page's controls have never been read, and must be readable later
    bounds = decisions.resolve(scores, rules)
    summary = {"name": name} | decisions.summary(scores, bounds)
    text = yaml.safe_dump(summary, sort_keys=False, allow_unicode=True).encode()
    table = decisions.TABLE.with_metadata({**decisions.TABLE.metadata, _RECORD: text})
    made = decisions.decided(scores, bounds)
    write_parquet(
        dataset, f"decisions/{name}.parquet", table, made,
        ready=lambda: dataset.storage.remove(f"decisions/{name}.yaml"),
    )  # fmt: skip
    _copy_record(dataset, name)
    return summary


def _copy_record(dataset: Dataset, name: str) -> None:
    """Write the YAML file from the Parquet file; again, if another process has replaced that one meanwhile.

    Whoever writes the YAML file last looks at the Parquet file after that, so the two agree when all are done.
    """
    written = None
    while (text := _record(dataset, name)) != written:
        dataset.storage.write(f"decisions/{name}.yaml", text)
        written = text


def write_parquet(
    dataset: Dataset,
    name: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Stream record batches into one Parquet file of the dataset; a failure leaves what was there.

    `ready` is called once the file is whole, just before it takes its name.

    For an object store the file is made on this machine and uploaded when it is whole: closing an upload half written
    would put the half in the place of what was there.
    """
    storage = dataset.storage
    if storage.is_local:
        with storage.writing(name) as path:
            _stream(path, schema, batches)
            ready()
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        _stream(file.name, schema, batches)
        ready()
        storage.fs.put_file(file.name, storage.path(name))


def _stream(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with open(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
