"""What is decoded as spans of OpenTelemetry, where that is installed: beneath the span of the HTTP request, or of the client.

Names follow the conventions for generative models (`gen_ai.*`); what these do not have is `decodery.*`. Texts are in none.
Spans go where the environment says (`OTEL_EXPORTER_OTLP_ENDPOINT`), or to the provider of a program that embeds the server.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from decodery._version import __version__
from decodery.errors import BadInput

if TYPE_CHECKING:
    from decodery.serving.engine_thread import Job
    from decodery.serving.visit import Visit

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@contextlib.contextmanager
def exporting(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Send spans where the environment says, until the end of the block. Raises BadInput where it does and the packages for it
    are not installed."""
    named = next((name for name in ENDPOINTS if environment.get(name)), None)
    if named is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise BadInput(f"{named} says where spans go, which needs more: pip install 'decodery[otel]'.") from None
    name = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "decodery"}
    provider = TracerProvider(resource=Resource.create(name))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def context_of(headers: Mapping[str, str]) -> Any:
    """What the spans of a request stand beneath: its own span where something has begun one, else that of the client, as its
    headers say. None where OpenTelemetry is not installed."""
    try:
        from opentelemetry import context, propagate, trace
    except ImportError:
        return None
    if trace.get_current_span().get_span_context().is_valid:
        return context.get_current()
    return propagate.extract(headers)


def note_decoding(visit: Visit, model: str, job: Job) -> None:
    """Tell of a job that is over, once the log line of its visit tells of it."""
    if visit.context is None:
        return
    from opentelemetry import trace

    assert job.prepared is not None
    now, told = time.perf_counter(), visit.told
    ago = time.time_ns() - int(now * 1e9)  # a time of perf_counter, as nanoseconds since 1970
    every = list({id(reply.stats): reply.stats for reply in job.prepared.replies()}.values())
    began = min(stats.started for stats in every)
    attributes = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "decodery",
        "gen_ai.request.model": model,
        "gen_ai.response.finish_reasons": [told["finish_reason"]],
        "gen_ai.usage.input_tokens": told["prompt_tokens"],
        "gen_ai.usage.output_tokens": told["completion_tokens"],
        "decodery.method": told["method"],
        "decodery.forwards": sum(stats.forwards for stats in every),
        "decodery.drafted": sum(stats.drafted for stats in every),
        "decodery.accepted": sum(stats.accepted for stats in every),
        "decodery.queued_seconds": told["queued_seconds"],
        "decodery.request_id": visit.id,
    }
    span = trace.get_tracer("decodery", __version__).start_span(
        f"decode {model}", visit.context, trace.SpanKind.INTERNAL, attributes, start_time=ago + int(began * 1e9)
    )
    if job.bursts:
        first = min(times[0][0] for times in job.bursts.values())
        span.add_event("first token", timestamp=ago + int(first * 1e9))
    if told["finish_reason"] == "error":
        span.set_status(trace.StatusCode.ERROR)
    span.end(ago + int(max(stats.started + stats.seconds for stats in every) * 1e9))
