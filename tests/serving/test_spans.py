"""What a server tells OpenTelemetry. Skips where its SDK is not installed: pip install "decodery[otel]"."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_models import Running, serving

from decodery.errors import BadInput
from decodery.serving import spans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "asked-1"}
BODY = {"model": "toy", "prompt": "secret words", "method": "prompt-lookup", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def told() -> Any:
    """Where spans are kept. OpenTelemetry takes one provider for each process."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def server(told: Any) -> Iterator[Running]:
    with serving() as running:
        told.clear()
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_beneath_the_clients(server: Running, told: Any, stream: bool) -> None:
    body = {**BODY, "stream": stream}
    answer = httpx.post(server.address + "/v1/completions", json=body, headers=HEADERS, timeout=120)
    assert answer.status_code == 200
    server.wait_idle()
    finished = told.get_finished_spans()
    [span] = [one for one in finished if one.name == "decode toy"]
    assert f"{span.context.trace_id:032x}" == TRACE
    above = f"{span.parent.span_id:016x}"
    assert above == PARENT or above in [f"{one.context.span_id:016x}" for one in finished]
    said = dict(span.attributes)
    assert (said["gen_ai.request.model"], said["decodery.request_id"]) == ("toy", "asked-1")
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (12, 8)
    assert said["gen_ai.response.finish_reasons"] == ("length",)
    assert said["decodery.method"] == "prompt-lookup"
    assert 1 <= said["decodery.forwards"] <= 8
    [event] = span.events
    assert event.name == "first token"
    assert span.start_time <= event.timestamp <= span.end_time
    assert "secret" not in "".join(one.to_json() for one in finished)


def test_what_is_refused_decodes_nothing(server: Running, told: Any) -> None:
    assert httpx.post(server.address + "/v1/completions", json={**BODY, "top_p": 7}).status_code == 400
    server.wait_idle()
    assert not [one for one in told.get_finished_spans() if one.name == "decode toy"]


def test_without_packages_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with pytest.raises(BadInput, match=r"pip install 'decodery\[otel\]'"), spans.exporting(environment):
        raise AssertionError("it has begun")
    for harmless in ({}, {**environment, "OTEL_SDK_DISABLED": "true"}):
        with spans.exporting(harmless):
            pass


def test_without_opentelemetry_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert spans.context_of({"traceparent": HEADERS["traceparent"]}) is None
