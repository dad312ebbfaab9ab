"""What a server tells: metrics, log lines, lists, tokens, and experiments."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_models import Running, serving, toy

from decodery.engine import registry
from decodery.serving import experiments, request_log
from decodery.serving.reply_metrics import speculation

BODY = {"model": "toy", "prompt": "abcabcabcabc", "max_tokens": 20, "temperature": 0}
REPEATING = {**BODY, "method": "prompt-lookup", "logit_bias": {"97": 50, "98": 50, "99": 50}}


def post(server: Running, body: Any, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    return httpx.post(server.address + path, json=body, headers=headers, timeout=120)


def samples(server: Running) -> dict[tuple[str, str], float]:
    """Metric and method (or reason) -> value, of the toy model."""
    text = httpx.get(server.address + "/metrics").text
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            word = sample.labels.get("finished_reason", sample.labels.get("method", ""))
            if sample.labels.get("model_name", "toy") == "toy" and "le" not in sample.labels:
                found[sample.name, word] = sample.value
    return found


def test_metrics_by_method_under_vllm_names() -> None:
    with serving() as server:
        told = [post(server, body).json() for body in (REPEATING, REPEATING, BODY)]
        found = samples(server)
        drafts = [one["decodery"]["metrics"]["speculative_decoding"] for one in told]
        method = "prompt-lookup"
        assert drafts[0]["num_draft_tokens"] > 0
        assert found["vllm:spec_decode_num_drafts_total", method] == sum(d["num_spec_steps"] for d in drafts[:2])
        assert found["vllm:spec_decode_num_draft_tokens_total", method] == sum(
            d["num_draft_tokens"] for d in drafts[:2]
        )
        accepted = sum(d["num_accepted_draft_tokens"] for d in drafts[:2])
        assert found["vllm:spec_decode_num_accepted_tokens_total", method] == accepted > 0
        assert found["vllm:generation_tokens_total", method] == 40
        assert found["vllm:prompt_tokens_total", method] == 24
        assert found["vllm:generation_tokens_total", "cascade"] == 20
        assert found["vllm:request_success_total", "length"] in (1, 2)
        for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "e2e_request_latency_seconds"):
            assert found[f"vllm:{name}_count", method] == 2
            assert 0 <= found[f"vllm:{name}_sum", method] < 30
        assert found["vllm:time_to_first_token_seconds_sum", method] > 0
        between = found["vllm:inter_token_latency_seconds_count", method]
        assert 20 < between < 40  # tokens after the first pass of each request
        assert found["vllm:num_requests_running", ""] == found["vllm:num_requests_waiting", ""] == 0
        answers = {k: v for k, v in found.items() if k[0] == "decodery:http_requests_total"}
        assert sum(answers.values()) > 0
        httpx.get(server.address + "/never/heard/of/it")
        assert "/never" not in httpx.get(server.address + "/metrics").text  # paths are routes, whatever is asked for


def test_how_much_is_told_of_drafts() -> None:
    for detail in ("none", "summary", "detailed"):
        with serving(request_metrics=detail) as server:
            metrics = post(server, REPEATING).json()["decodery"]["metrics"]
            told = metrics.get("speculative_decoding")
            if detail == "none":
                assert told is None
                continue
            assert (told["per_step_accepted"] is None) == (detail == "summary")
            if detail == "detailed":
                assert len(told["per_step_drafted"]) == told["num_spec_steps"]
                assert sum(told["per_step_accepted"]) == told["num_accepted_draft_tokens"]
    assert speculation([], True) is None


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes into the log."""
    kept = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in request_log.LOGGERS}
    levels = {name: logging.getLogger(name).level for name in request_log.LOGGERS}
    stream = io.StringIO()
    yield stream
    for name, (handlers, propagate) in kept.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(levels[name])


@pytest.mark.parametrize("prompts", [False, True])
def test_log_lines_as_json(written: io.StringIO, prompts: bool) -> None:
    request_log.set_up(True, written)
    with serving(log_prompts=prompts) as server:
        secret = {**BODY, "prompt": "my secret", "user": "anna"}
        assert post(server, secret, **{"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
        odd = post(server, {**BODY, "nonsense": "my secret"}, **{"X-Request-Id": "not\tmine"}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", odd)
        server.wait_idle()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    good, bad = [line for line in lines if line["logger"] == "decodery.serving.requests"]
    assert (good["request_id"], good["status"], good["path"], good["model"]) == (
        "mine-1",
        200,
        "/v1/completions",
        "toy",
    )
    assert (good["decoding"], good["completion_tokens"], good["user"]) == ("cascade", 20, "anna")
    assert (bad["request_id"], bad["status"]) == (odd, 400)
    assert ("my secret" in written.getvalue()) == prompts
    assert any(line.get("message", "").startswith("loaded toy") for line in lines)


def test_log_lines_as_text(written: io.StringIO) -> None:
    request_log.set_up(False, written)
    request_log.note_request(request_id="a", user="x\ny status=200", status=400, key=None)
    line = written.getvalue()
    assert line.count("\n") == 1
    assert line.endswith('request_id=a user="x\\ny status=200" status=400\n')


def test_tokens_there_and_back(server: Running) -> None:
    told = post(server, {"prompt": "hi ü", "return_token_strs": True}, "/tokenize").json()
    assert told == {
        "count": 5, "max_model_len": 4096, "tokens": list("hi ü".encode()), "token_strs": ["h", "i", " ", "�", "�"],
    }  # fmt: skip
    talk = {"messages": [{"role": "user", "content": "hi"}]}
    assert post(server, talk, "/tokenize").json()["tokens"] == [257, 104, 105, 256, 258]
    assert post(server, {"tokens": told["tokens"]}, "/detokenize").json() == {"prompt": "hi ü"}
    assert post(server, {"prompt": "", "add_special_tokens": False}, "/tokenize").json()["count"] == 0
    stories = {"model": "diffusion-stories", "prompt": "Once upon"}
    ids = [
        post(server, {**stories, "add_special_tokens": flag}, "/tokenize").json()["tokens"] for flag in (True, False)
    ]
    lm = server.lm("diffusion-stories")
    assert ids == [lm.tokenize("Once upon"), lm.encode("Once upon")]
    for path, body, param in (
        ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"), ("/tokenize", {"prompt": "a", "more": 1}, "more"),
        ("/tokenize", {**talk, "add_special_tokens": False}, "add_special_tokens"),
        ("/tokenize", {"messages": [1]}, "messages"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/detokenize", {"tokens": [260]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"), ("/tokenize", {"prompt": "a", "model": 1}, "model"),
    ):  # fmt: skip
        answer = post(server, body, path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_next_byte(server: Running) -> None:
    told = post(server, {"prompt": "hi", "top": 3}, "/v1/decodery/next_byte").json()
    found = server.lm().next_byte("hi")
    assert [one["byte"] for one in told["next"]] == [byte[0] for byte, _ in found.top(3)]
    assert told["next"][0]["probability"] == pytest.approx(found.top(1)[0][1], abs=1e-6)
    assert told["end"] == pytest.approx(found.end, abs=1e-6)
    assert told["forwards"] == found.forwards
    assert told["leak"] == pytest.approx(found.leak, abs=1e-6)
    talk = {"messages": [{"role": "user", "content": "hi"}], "fast": True}
    assert len(post(server, talk, "/v1/decodery/next_byte").json()["next"]) == 10
    for body, param in (
        ({}, "prompt"), ({"prompt": 1}, "prompt"), ({"prompt": "a", "messages": []}, "prompt"), ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "top": 0}, "top"), ({"prompt": "a", "top": True}, "top"), ({"prompt": "a", "fast": 1}, "fast"),
        ({"prompt": "a", "more": 1}, "more"), ({"messages": [1]}, "messages"),
        ({"prompt": "a", "model": "diffusion-stories"}, "prompt"),
    ):  # fmt: skip
        answer = post(server, body, "/v1/decodery/next_byte")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_texts_in_bytes_over_http(server: Running) -> None:
    body = {"prompt": "hi", "max_tokens": 6, "temperature": 0, "method": "byte-level-probabilities"}
    told = post(server, body, "/v1/completions").json()
    plain = post(server, {**body, "method": "autoregressive"}, "/v1/completions").json()
    # Of single bytes as tokens the two are the same.
    assert told["choices"][0]["text"] == plain["choices"][0]["text"]
    lent = post(server, {**body, "method": "byte-level-probabilities(models=elsewhere)"}, "/v1/completions")
    assert lent.status_code == 400


def test_methods_are_those_of_the_registry(server: Running) -> None:
    told = httpx.get(server.address + "/v1/decodery/methods").json()["data"]
    assert told == json.loads(json.dumps([info.as_dict() for info in registry.methods()]))


def test_the_description_names_every_field(server: Running) -> None:
    told = httpx.get(server.address + "/openapi.json").json()
    body = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "method", "min_p", "top_logprobs", "max_completion_tokens"} <= set(body["properties"])
    assert body["properties"]["temperature"]["type"] == "number"
    assert body["additionalProperties"] is False
    assert "stopping_criteria" not in body["properties"]


def test_an_experiment_decides_over_a_method() -> None:
    with serving(lambda name, **options: toy(), models=["twin=stories-twin"]) as server:
        body = {"model": "twin", "method": "prompt-lookup", "prompts": 1, "max_new_tokens": 8, "samples": 100}
        told = httpx.post(server.address + "/v1/decodery/check", json=body, timeout=600).json()
        assert (told["method"], told["exactness"], told["passed"]) == ("prompt-lookup", "identical-to-plain", True)
        assert {part["name"] for part in told["parts"]} >= {"greedy identity, cold", "greedy identity, hot"}


def test_experiments_that_cannot_be(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/v1/decodery/check"
    for body, status, param in (
        ({}, 400, "method"), ({"method": "no-such"}, 400, "method"), ({"method": "cascade", "samples": 10**6}, 400, "samples"),
        ({"method": "cascade", "significance": 0}, 400, "significance"), ({"method": "cascade", "more": 1}, 400, "more"),
        ({"method": "cascade", "model": "x"}, 404, "model"), ({"method": "cascade(table=/etc/hostname)"}, 400, "method"),
    ):  # fmt: skip
        answer = post(server, body, path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    monkeypatch.setattr(experiments, "_running", {id(server.service)})
    answer = post(server, {"method": "cascade"}, path)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
    with serving(check=False) as other:
        assert post(other, {"method": "cascade"}, path).status_code == 404


def test_tokenizer_info(server: Running) -> None:
    """vLLM's names; the first model, or the one that is named."""
    told = httpx.get(f"{server.address}/tokenizer_info").json()
    assert (told["model"], told["max_model_len"]) == ("toy", server.lm().network.context)
    assert (told["bos_token"], told["eos_token"]) == (None, None)
    assert told["chat_template"] == getattr(server.lm().tokenizer, "chat_template", None)
    other = httpx.get(f"{server.address}/tokenizer_info", params={"model": "diffusion-stories"}, timeout=120).json()
    tokenizer = server.lm("diffusion-stories").tokenizer
    assert (other["model"], other["eos_token"]) == ("diffusion-stories", tokenizer.eos_token)
    assert other["eos_token"]
    for query, status in (({"model": "toys"}, 404), ({"nonsense": "1"}, 400)):
        assert httpx.get(f"{server.address}/tokenizer_info", params=query).status_code == status
