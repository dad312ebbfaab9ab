"""Every field acts, or is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
import pytest
from serving_models import Running

from decodery.engine import registry
from decodery.engine.settings import declared
from decodery.sampling.settings import Whole, setting
from decodery.sampling.steps import Step, register, unregister
from decodery.serving.asked import read, read_json
from decodery.serving.failures import Failure
from decodery.serving.fields import CHAT, COMPLETIONS, EVENTS, RESPONSES, ROUTES, Route

PROMPTS: Mapping[str, Any] = {
    CHAT.path: {"messages": [{"role": "user", "content": "hello there"}]},
    COMPLETIONS.path: {"prompt": "hello there"},
    RESPONSES.path: {"input": "hello there"},
    EVENTS.path: {"prompt": "hello there"},
}
TEXT = "the quick brown"


def post(server: Running, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(server.address + path, json=body, headers=headers, timeout=120)


def text_of(path: str, answer: Any) -> Any:
    """What was decoded, with all that was asked about it."""
    if path == RESPONSES.path:
        return answer["output"]
    return answer["choices"]


ACTING: Mapping[str, Any] = {
    "temperature": 0.2,
    "top_k": 2,
    "top_p": 0.3,
    "min_p": 0.4,
    "repetition_penalty": 3.0,
    "presence_penalty": 5.0,
    "frequency_penalty": 5.0,
    "logit_bias": {"65": 40},
    "min_new_tokens": 9,
    "processors": [{"name": "forbidden-tokens", "token_ids": list(range(96, 200))}],
    "max_new_tokens": 3,
    "seed": 12,
    "chance": "gumbel",
    "stop": ["I", "U"],
    "stop_token_ids": list(range(64, 80)),
    "ignore_eos": True,
    "echo": True,
    "n": 2,
    "logprobs": 2,
    "order": "llama.cpp",
    "session": "mine",
    "target": "guidance(scale=3.0)",
    "dry_multiplier": 20.0,
    "dry_base": 60.0,
    "dry_allowed_length": 1,
    "dry_penalty_last_n": 2,
    "dry_sequence_breakers": [[token] for token in range(256)],
    "no_repeat_ngram_size": 1,
    "bad_words": [[token] for token in range(64, 200)],
    "allowed_token_ids": [70, 71],
    "dynatemp_range": 0.9,
    "dynatemp_exponent": 4.0,
    "top_h": 0.1,
    "top_n_sigma": 0.5,
    "typical_p": 0.1,
    "typical_min_keep": 40,
    "tail_free": 0.2,
    "epsilon_cutoff": 0.3,
    "eta_cutoff": 0.5,
    "xtc_probability": 1.0,
    "xtc_threshold": 0.4,
    "mirostat": 2,
    "mirostat_tau": 1.0,
    "mirostat_eta": 1.0,
    "momentum_alpha": 0.5,
    "momentum_k": 1,
    "momentum_longest": 1,
    "momentum_resistance": [0.0, 9.0],
    "momentum_ends_resist": True,
    "structured_outputs": {"regex": "[0-9]{4}"},
    "watermark": {"scheme": "exp", "key": 7, "vocabulary": 260},
}
"""Setting of the registry -> a value that changes the text, or what is told of it."""
REPEATING: Mapping[str, Any] = {"temperature": 0.5, "allowed_token_ids": [70, 71, 72], "max_tokens": 24}
MOMENTUM: Mapping[str, Any] = {
    "temperature": 0.0,
    "momentum_alpha": 0.1,
    "allowed_token_ids": [70, 71],
    "max_tokens": 60,
}
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "order": {"temperature": 3.0, "top_p": 0.5},  # whether the truncation sees the temperature
    "min_new_tokens": {"stop_token_ids": list(range(64))},
    "ignore_eos": {"logit_bias": {"256": 100}},
    "session": {"method": "test-counting"},
    "target": {"temperature": 0.9},
    "dry_multiplier": REPEATING,
    "dry_base": {**REPEATING, "dry_multiplier": 0.5},
    "dry_allowed_length": {**REPEATING, "dry_multiplier": 8.0, "dry_allowed_length": 6},
    "dry_penalty_last_n": {**REPEATING, "dry_multiplier": 20.0},
    "dry_sequence_breakers": {**REPEATING, "dry_multiplier": 20.0},
    "dynatemp_exponent": {"dynatemp_range": 0.9},
    "typical_min_keep": {"typical_p": 0.05},
    "xtc_threshold": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "momentum_alpha": {"temperature": 0.0},
    "momentum_k": MOMENTUM,
    "momentum_longest": MOMENTUM,
    "momentum_resistance": MOMENTUM,
    "momentum_ends_resist": {
        "temperature": 0.0,
        "momentum_alpha": 9.0,
        "allowed_token_ids": [101, 120],
        "logit_bias": {"120": 30},
        "stop_token_ids": [101],
        "messages": [{"role": "user", "content": "xxxexxxexxxexxxexxxe"}],
    },
    "mirostat_tau": {"mirostat": 2},
    "mirostat": {"temperature": 4.0},
    "mirostat_eta": {"mirostat": 2, "mirostat_tau": 2.0, "temperature": 4.0, "max_tokens": 60},
}
BASE: Mapping[str, Any] = {"max_tokens": 12, "seed": 3, "method": "autoregressive"}


@pytest.fixture(scope="module")
def ending_server() -> Any:
    """A model that has an end token, and a method that remembers in its session."""
    from serving_models import serving, toy

    from decodery.engine.autoregressive import Autoregressive

    @dataclass(frozen=True)
    class Counting(Autoregressive):
        name: ClassVar[str] = "test-counting"

        def decode(self, request: Any) -> Any:
            count = request.remember("count", lambda: [0])
            count[0] += 1
            request.statistics.details["count"] = count[0]
            yield from super().decode(request)

    def load(name: str, **options: Any) -> Any:
        lm = toy()
        lm.stop_ids = (256,)
        return lm

    registry.register(Counting)
    try:
        with serving(load) as running:
            yield running
    finally:
        del registry._classes["test-counting"]


@pytest.mark.parametrize("name", [name for name, own in declared().items() if own.kind.schema() is not None])
def test_every_setting_acts(ending_server: Running, name: str) -> None:
    """Derived from the registry: a new setting needs a value here that is seen in the answer."""
    path = CHAT.path if name not in ("echo", "logprobs") else COMPLETIONS.path
    body = {**BASE, **PROMPTS[path], **BESIDE.get(name, {})}
    if name == "session":
        for session, expected in (("a", 1), ("a", 2), ("b", 1)):
            answer = post(ending_server, path, {**body, "session": session}).json()
            assert answer["decodery"]["metrics"]["details"] == [{"count": expected}]
        return
    changed = {key: value for key, value in body.items() if name != "max_new_tokens" or key != "max_tokens"}
    plain, other = post(ending_server, path, body), post(ending_server, path, {**changed, name: ACTING[name]})
    assert (plain.status_code, other.status_code) == (200, 200), other.text
    assert text_of(path, plain.json()) != text_of(path, other.json())
    assert text_of(path, post(ending_server, path, body).json()) == text_of(path, plain.json())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("max_tokens", "max_new_tokens"), ("max_completion_tokens", "max_new_tokens"), ("min_tokens", "min_new_tokens"),
        ("num_return_sequences", "n"), ("stop_strings", "stop"),
    ],
)  # fmt: skip
def test_names_of_others_mean_the_same(ending_server: Running, alias: str, name: str) -> None:
    beside = {**BASE, **PROMPTS[CHAT.path], **BESIDE.get(name, {})}
    if name == "max_new_tokens":
        del beside["max_tokens"]
    answers = [post(ending_server, CHAT.path, {**beside, n: ACTING[name]}).json() for n in (alias, name)]
    assert text_of(CHAT.path, answers[0]) == text_of(CHAT.path, answers[1])
    both = post(ending_server, CHAT.path, {**beside, alias: ACTING[name], name: ACTING[name]})
    assert both.status_code == 400
    assert "mean the same" in both.json()["error"]["message"]


def test_vllm_names(ending_server: Running) -> None:
    body = {**BASE, **PROMPTS[CHAT.path]}
    plain = post(ending_server, CHAT.path, body).json()
    assert text_of(CHAT.path, post(ending_server, CHAT.path, {**body, "top_k": -1}).json()) == text_of(CHAT.path, plain)
    inner = {"method": "token-recycling(k=3)", "top_k": 2}
    told = post(
        ending_server, CHAT.path, {**PROMPTS[CHAT.path], "seed": 3, "max_tokens": 12, "vllm_xargs": inner}
    ).json()
    beside = post(ending_server, CHAT.path, {**PROMPTS[CHAT.path], "seed": 3, "max_tokens": 12, **inner}).json()
    assert told["decodery"]["method"] == beside["decodery"]["method"] == "token-recycling(k=3)"
    assert text_of(CHAT.path, told) == text_of(CHAT.path, beside) != text_of(CHAT.path, plain)
    twice = post(ending_server, CHAT.path, {**body, "top_k": 3, "vllm_xargs": {"top_k": 2}})
    assert twice.json()["error"]["param"] == "vllm_xargs"
    ids = post(ending_server, COMPLETIONS.path, {**BASE, "prompt": "hello", "return_token_ids": True}).json()["choices"]
    assert ids[0]["prompt_token_ids"] == list(b"hello")
    assert len(ids[0]["token_ids"]) == 12


def test_a_new_step_of_the_law_is_a_new_field(ending_server: Running) -> None:
    @dataclass(frozen=True)
    class Only(Step):
        only_token: int | None = setting(None, Whole(0), "The only token that may come.")
        name = "only_token"
        place = 310

        def apply(self, rows: Any, prefixes: Any) -> Any:
            kept = rows[:, [self.only_token]].clone()
            rows.fill_(float("-inf"))
            rows[:, [self.only_token]] = kept
            return rows

    body = {**BASE, **PROMPTS[CHAT.path], "only_token": 70}
    assert post(ending_server, CHAT.path, body).json()["error"]["param"] == "only_token"
    register(Only)
    try:
        assert post(ending_server, CHAT.path, body).json()["choices"][0]["message"]["content"] == "F" * 12
        assert post(ending_server, CHAT.path, {**body, "only_token": -1}).json()["error"]["param"] == "only_token"
        assert "only_token" in CHAT.schema()["properties"]
    finally:
        unregister(Only)


# What is refused


def failure(route: Route, body: Mapping[str, Any]) -> Failure:
    with pytest.raises(Failure) as raised:
        read(route, {**PROMPTS[route.path], **body})
    assert raised.value.status == 400
    return raised.value


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_what_is_not_offered_is_refused_by_name(route: Route) -> None:
    for name, refused in route.not_offered.items():
        assert failure(route, {name: "something else"}).param == name
        for good in (*refused.neutral, None):
            read(route, {**PROMPTS[route.path], name: good})


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_unknown_fields_and_wrong_types(route: Route) -> None:
    assert failure(route, {"temprature": 1}).param == "temprature"
    assert "did you mean temperature" in failure(route, {"temprature": 1}).message
    assert failure(route, {"x" * 10_000: 1}).message.__len__() < 2000
    for name in ("model", "method", "user"):
        assert failure(route, {name: 7}).param == name
    assert failure(route, {"stream": "yes"}).param == "stream"
    for name in route.settings():
        assert failure(route, {name: {"nonsense": [1]}}).param == name
    with pytest.raises(Failure) as missing:
        read(route, {})
    assert missing.value.param == route.prompt


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (CHAT, {"logprobs": 3}, "logprobs"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (CHAT, {"stream": True, "stream_options": {"tokens": True}}, "stream_options.tokens"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": ["hello"]}, "messages"),
        (COMPLETIONS, {"best_of": 2}, "best_of"),
        (COMPLETIONS, {"best_of": 2, "n": 3}, "best_of"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", [1]]}, "prompt"),
        (COMPLETIONS, {"prompt": [1.5]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], []]}, "prompt"),
        (COMPLETIONS, {"prompt": {"text": "a"}}, "prompt"),
        (COMPLETIONS, {"suffix": 5}, "suffix"),
        (COMPLETIONS, {"suffix": "and so on", "prompt": [1, 2]}, "suffix"),
        (RESPONSES, {"include": ["reasoning.encrypted_content"]}, "include"),
        (RESPONSES, {"top_logprobs": 2}, "top_logprobs"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "a"}]}, "input"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (EVENTS, {"prompt": ["a", "b"]}, "prompt"),
        (EVENTS, {"prompt": []}, "prompt"),
        (EVENTS, {"prompt": [{"role": "user"}, "hello"]}, "prompt"),
        (EVENTS, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"method": "cascadee"}, "method"),
        (CHAT, {"method": "token-recycling(k=0)"}, "method"),
        (CHAT, {"method": "token-recycling(k=" + "(" * 1900}, "method"),
        (CHAT, {"method": "cascade" + " " * 3000}, "method"),
        (CHAT, {"model": "x" * 300}, "model"),
        (CHAT, {"user": "x" * 300}, "user"),
        (CHAT, {"session": "x" * 300}, "session"),
        (CHAT, {"target": "guidance(scale=" + "-" * 3000 + "1)"}, "target"),
        (CHAT, {"processors": ["forbidden-tokens(token_ids=" + "-" * 3000 + "1)"]}, "processors"),
        (CHAT, {"processors": [{"name": "os.system", "command": "true"}]}, "processors"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(route: Route, body: Mapping[str, Any], param: str) -> None:
    assert failure(route, body).param == param


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"stop_token_ids": [260]}, "stop_token_ids", "tokens are 0 to 259"),
        ({"logit_bias": {"260": 1}}, "logit_bias", "tokens are 0 to 259"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "only 8"),
        ({"method": "masked-diffusion"}, "method", "is a causal one"),
        ({"method": "draft-model(draft=/etc)"}, "method", "no model '/etc'"),
        ({"target": "contrast(amateur=smollm2-135m)"}, "target", "lends methods and targets no model"),
        ({"max_tokens": 5000}, "messages", "has a context of 4096"),
        ({"messages": [{"role": "user", "content": ""}], "n": 65}, "n", "more than the 64 texts"),
        ({"messages": [{"role": "robot", "content": [{"type": "image_url"}]}]}, "messages", "content is text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "not valid Unicode"),
        ({"messages": [{"content": "hello"}]}, "messages", "a role and a content"),
    ],
)
def test_what_the_model_refuses(server: Running, body: Mapping[str, Any], param: str, says: str) -> None:
    answer = httpx.post(
        server.address + CHAT.path,
        content=json.dumps({**PROMPTS[CHAT.path], **body}),
        headers={"Content-Type": "application/json"},
    )
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert error["param"] == param


def test_json_is_read_strictly() -> None:
    for data, says in (
        (b"", "no JSON"), (b"[1]", "must be a JSON object"), (b"{", "no JSON"), (b"\xff{}", "not UTF-8"),
        (b'{"a": NaN}', "NaN"), (b'{"a": 1, "a": 2}', "stands twice"), (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"), (b'{"a":' * 100_000, "nested too deeply"),
    ):  # fmt: skip
        with pytest.raises(Failure, match=says) as raised:
            read_json(data)
        assert raised.value.status == 400


# What requests must not reach


def test_no_parameter_opens_a_file() -> None:
    """Of every method: a text that could name a file is refused, or names none."""
    named, free = [], []
    for info in registry.methods():
        for item in info.parameters:
            if "str" in item.type.split(" | ") and not item.choices:
                named.append((info.name, item.name)) if item.names else free.append((info.name, item.name))
    for name, parameter in named:
        cls = registry.find(name)
        if next(item for item in cls.parameters() if item.name == parameter).names == "file":
            found = _files(name, parameter)
            assert found in ([parameter], None), name
    assert set(free) == {
        ("cascade", "sources"), ("draft-model", "draft"), ("recursive-speculative-decoding", "draft"),
        ("recursive-speculative-decoding", "branching"), ("spectr", "draft"), ("optimal-multi-draft", "draft"),
        ("optimal-multi-draft", "widths"), ("del", "exits"), ("guided-diffusion", "guide"), ("hex", "block_lengths"),
        ("adablock", "delimiters"), ("beam-search", "early_stopping"), ("diverse-beam-search", "strength"),
        ("ariel", "point"), ("ariel", "text"), ("ariel", "towards"), ("qmcpy", "text"),
        ("counterfactual-generation", "factual"), ("counterfactual-generation", "interventions"),
        ("soft-thinking", "end"), ("superposed-decoding", "weights"), ("byte-level-probabilities", "models"),
        ("byte-level-probabilities", "weights"), ("byte-draft-model", "draft"), ("specdec-pp", "draft"),
    }, "a new parameter of text: say what it names (`parameter(names=…)`), or that it is none of a file here"  # fmt: skip
    for spec, parameter in (
        ("suffix-automaton(corpus=/etc/hostname)", "corpus"), ("cascade(table=/etc/hostname)", "table"),
        ("swift(layer_set=/etc/hostname)", "layer_set"), ("sched(calibration=/etc/hostname)", "calibration"),
        ("adablock(sampler='sched(calibration=x)')", None),
        ("best-of-n(method='suffix-automaton(corpus=/etc/hostname)')", "corpus"),
    ):  # fmt: skip
        refused = failure(CHAT, {"method": spec})
        assert refused.param == "method"
        assert parameter is None or f"{parameter} names a file" in refused.message


def _files(name: str, parameter: str) -> list[str] | None:
    """The files that a method is found to name; None where the parameter does not go by itself."""
    from decodery.errors import BadParameter

    try:
        return registry.files_of(registry.method(f"{name}({parameter}=/etc/hostname)"))
    except BadParameter:
        return None
