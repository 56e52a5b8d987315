"""An optional OpenTelemetry trace of every source on its way through the graph.

With $CLIPMILL_TRACE set, each actor writes a span for each piece of work: to the OTLP endpoint that the standard
variables name (OTEL_EXPORTER_OTLP_ENDPOINT; needs opentelemetry-exporter-otlp), or else as JSON to a file of its own in
the folder $CLIPMILL_TRACE. All spans of one source have one trace id, a hash of the job and the source's uri: so
they find together without anything that would have to travel between the actors.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "CLIPMILL_TRACE"


def trace_id(job: str, uri: str) -> int:
    """The 128-bit trace id of a source in a job."""
    return int.from_bytes(hashlib.sha256(f"{job}\0{uri}".encode("utf-8", "surrogateescape")).digest()[:16], "big")


@contextmanager
def span(name: str, uri: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """A span of the source's trace, as long as the block; what is put into the dict becomes attributes of it."""
    more: dict[str, Any] = {}
    if not os.environ.get(VARIABLE):
        yield more
        return
    from opentelemetry import trace

    job = os.environ.get("CLIPMILL_JOB", "")
    identity = trace_id(job, uri)
    root = trace.SpanContext(identity, identity & (2**64 - 1) or 1, True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
    context = trace.set_span_in_context(trace.NonRecordingSpan(root))
    with _tracer().start_as_current_span(name, context) as recording:
        recording.set_attributes({"clipmill.job": job, "clipmill.source_uri": uri, **attributes})
        yield more
        recording.set_attributes({key: value for key, value in more.items() if value is not None})


@cache
def _tracer() -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "clipmill"}))
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    else:
        folder = Path(os.environ[VARIABLE])
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"spans-{os.uname().nodename}-{os.getpid()}.jsonl").open("a", encoding="utf-8")
        exporter = ConsoleSpanExporter(out=file, formatter=lambda each: each.to_json(indent=None) + "\n")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("clipmill")
