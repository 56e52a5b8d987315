"""The spans of a source, from all actors that worked on it, make up one trace; unasked, there is none."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from curation import tracing
from curation.source import SourceSettings
from tests.media import film
from workers.source import SourceActor
from workers.writer import WriterActor


def test_one_video_is_one_trace_through_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.VARIABLE, str(tmp_path / "traces"))
    monkeypatch.setenv("CLIPMILL_JOB", "films")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    tracing._tracer.cache_clear()
    uris = [str(film("bikes.mp4")), str(tmp_path / "missing.mp4")]
    actor, writer = SourceActor(SourceSettings(min_s=1.0, max_s=4.0), 600), WriterActor(str(tmp_path / "out"))
    for uri in uris:
        for part in actor(pa.table({"uri": [uri]})):
            writer(part)
    spans = [json.loads(line) for file in (tmp_path / "traces").iterdir() for line in file.read_text().splitlines()]
    traces = {span["attributes"]["clipmill.source_uri"]: span["context"]["trace_id"] for span in spans}
    assert traces == {uri: f"0x{tracing.trace_id('films', uri):032x}" for uri in uris}
    found = [(span["name"], span["attributes"].get("reason")) for span in spans]
    assert sorted(found, key=str) == [("source", "missing"), ("source", None), ("store", None)]
    source = next(span["attributes"] for span in spans if span["attributes"].get("status") == "ok")
    assert source["clips"] > 0
    assert source["cuts_s"] > 0
    assert {span["parent_id"] for span in spans if span["attributes"]["clipmill.source_uri"] == uris[0]} == {
        f"0x{tracing.trace_id('films', uris[0]) & (2**64 - 1):016x}"
    }


def test_no_trace_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.VARIABLE, raising=False)
    tracing._tracer.cache_clear()
    with tracing.span("source", "x") as said:
        said["clips"] = 1
    assert tracing._tracer.cache_info().currsize == 0
