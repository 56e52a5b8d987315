"""A source is found again under its name, whatever its file is called."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from curation.source import SourceSettings
from pipelines.commit import Committer
from pipelines.dataset import Dataset
from pipelines.inputs import find_sources
from pipelines.survey import gather, survey
from tests.media import Shot, make_film
from workers.source import SourceActor
from workers.wire import messages


@pytest.mark.parametrize("name", [b"bad\xff.mp4", b"100%\xff%FF.mp4", b"a::b.mp4"])
def test_a_film_of_any_name_is_curated_once(tmp_path: Path, name: bytes) -> None:
    films, dataset = tmp_path / "films", Dataset(tmp_path / "out")
    films.mkdir()
    os.rename(make_film(tmp_path / "film.mp4", [Shot("bikes.1", 40)]).path, films / os.fsdecode(name))
    (films / os.fsdecode(b"text-" + name)).write_bytes(b"This is no film.\n" * 100)
    todo = [uri for uri, _ in survey(gather(find_sources([str(films)])), dataset).todo()]
    committer = Committer(dataset)
    for part in SourceActor(SourceSettings(min_s=1.0, motion=False), 60.0)(pa.table({"uri": todo})):
        ((kind, uri, note, _),) = messages(part)
        if kind == "report":
            committer.report(uri, note["row"], note["segments"])
        else:
            committer.receipt(uri, note["index"])
    committer.flush()
    rows = dataset.sources().to_pylist()
    assert [(row["status"], row["reason"]) for row in rows] == [("ok", None), ("failed", "not_a_video")]
    assert [row["source_uri"] for row in rows] == todo
    assert survey(gather(find_sources([str(films)])), dataset).pending == 0
    for uri in todo:  # as a row or a report shows it
        (again,) = find_sources([uri])
        assert again["uri"].to_pylist() == [uri.encode()]
        assert again["size"][0].as_py() > 0
