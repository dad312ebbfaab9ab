"""Everything composes, or is refused with the reason before work starts.

The matrix is generated: every registered method with every setting and every pair of settings. Each cell must run or be
refused in one sentence before the first forward. Where a method is lossless, the output of a cell is that of plain decoding
under the same settings; where its drafts are deterministic, this holds for sampled output too, since the noise of a position
has an address.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from decodery.engine.events import Finished, Token
from decodery.engine.registry import find, names
from decodery.errors import DecoderyError
from decodery.speculative.draft_laws.laws import DraftLawMethod
from decodery.testing import (
    SmallLanguageModel,
    scripted_language_model,
    story_scorer,
    toy_diffusion_model,
    watched,
)

RANDOM_DRAFTS = {name for name in names() if issubclass(find(name), DraftLawMethod)} | {"swift", "del"}
"""Their drafts are drawn at random: for a seed they give another sample of the same law."""
VOCABULARY = 24
END = 11
TEMPERATURES = (0.0, 2.0)
"""Greedy, and hot enough that every setting matters."""


def _not_the_successor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A logits processor that depends on the prefix: no token may be followed by the next one in order."""
    scores = scores.clone()
    scores[0, (ids[0, -1] + 1) % VOCABULARY] = -float("inf")
    return scores


def _fifteen_tokens(ids: torch.Tensor, scores: torch.Tensor) -> bool:
    return ids.shape[1] >= 15


SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "presence_penalty": {"presence_penalty": 0.9},
    "frequency_penalty": {"frequency_penalty": 0.7},
    "logit_bias": {"logit_bias": {3: 2.5, 7: -float("inf")}},
    "min_new_tokens": {"min_new_tokens": 9},
    "processors": {"processors": [_not_the_successor]},
    "order": {"order": ["temperature", "top_p", "min_p", "top_k", "processors", "min_new_tokens", "logit_bias",
                        "frequency_penalty", "presence_penalty", "repetition_penalty"]},
    "chance": {"chance": "gumbel"},
    "stop": {"stop": ["sa", "isb", "zz"]},
    "stop_token_ids": {"stop_token_ids": [15, 8]},
    "ignore_eos": {"ignore_eos": True},
    "echo": {"echo": True},
    "n": {"n": 2},
    "logprobs": {"logprobs": 2},
    "stopping_criteria": {"stopping_criteria": [_fifteen_tokens]},
    "session": {"session": "another"},
    "max_new_tokens": {"max_new_tokens": 5},
    "streaming": {},
    "packed": {},
    "cancellation": {},
}  # fmt: skip
"""What may be asked for, and an instance of it. The last three are ways to run."""

PROMPTS = [[12, 20], [0, 1, 2, 3, 0, 1], [5]]
CANCEL_AFTER = 4

Outcome = list[tuple[tuple[int, ...], str, tuple[Any, ...], str]]
"""Per reply: tokens, text, log probabilities, reason of its end."""


CAUSAL = [name for name in names() if find(name).family != "diffusion"]


@cache
def _host(diffusion: bool = False) -> SmallLanguageModel:
    if diffusion:
        return toy_diffusion_model(vocabulary=VOCABULARY, canvas=14, stop_ids=(END,))
    return scripted_language_model(
        story_scorer(VOCABULARY), stop_ids=(END,), drafter=story_scorer(VOCABULARY, surprise=0.5, name="other")
    )


def _run(method: str, chosen: frozenset[str], temperature: float) -> Outcome:
    lm = _host(find(method).family == "diffusion")
    arguments: dict[str, Any] = {"max_new_tokens": 14, "temperature": temperature, "method": method}
    for name in sorted(chosen):
        arguments |= SETTINGS[name]
    prompt: Any = PROMPTS if "packed" in chosen else PROMPTS[1]
    if chosen & {"streaming", "cancellation"}:
        return _streamed(lm, prompt, arguments | {"seed": 8}, "cancellation" in chosen)
    given = lm.generate(prompt, seed=8, **arguments)
    replies = [reply for entry in (given if isinstance(given, list) else [given])
               for reply in (entry if isinstance(entry, list) else [entry])]  # fmt: skip
    for reply in replies:
        assert reply.error is None
    return [
        (
            tuple(reply.token_ids),
            reply.text,
            tuple((reply.logprobs or []) + (reply.prompt_logprobs or [])),
            reply.finish_reason,
        )
        for reply in replies
    ]


def _streamed(lm: SmallLanguageModel, prompt: Any, arguments: dict[str, Any], cancel: bool) -> Outcome:
    events: dict[int, list[Token]] = {}
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    stream = lm.stream(prompt, **arguments)
    for event in stream:
        if isinstance(event, Token):
            events.setdefault(event.request, []).append(event)
        if isinstance(event, Token | Finished):
            texts[event.request] = texts.get(event.request, "") + event.text
        if isinstance(event, Finished):
            ends[event.request] = event.reason
        if cancel and len(events.get(0, [])) == CANCEL_AFTER:
            break
    stream.close()
    if cancel:  # others may have got further or less far by then
        events, texts, ends = {0: events[0]}, {0: texts[0]}, {0: ""}
    return [
        (
            tuple(token.token_id for token in events[request]),
            texts[request],
            tuple(token.logprobs for token in events[request] if token.logprobs is not None),
            ends[request],
        )
        for request in sorted(events)
    ]


@cache
def _plain(chosen: frozenset[str], temperature: float) -> Outcome:
    return _run("autoregressive", chosen, temperature)


def _same(found: Outcome, expected: Outcome) -> bool:
    if [reply[:2] + reply[3:] for reply in found] != [reply[:2] + reply[3:] for reply in expected]:
        return False
    return all(
        abs(a.raw - b.raw) < 1e-4 and abs(a.processed - b.processed) < 1e-4 and _ids(a) == _ids(b)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one[2], other[2], strict=True)
    )


def _ids(logprobs: Any) -> list[int]:
    return [token for token, _ in logprobs.top]


def _cell(method: str, chosen: frozenset[str]) -> None:
    """Try one cell of the matrix, greedily and sampled."""
    cls = find(method)
    for temperature in TEMPERATURES:
        if temperature == 0.0 and "temperature" in chosen:
            continue
        forwards: list[object] = []
        try:
            with watched(_host(cls.family == "diffusion").network, forwards.append):
                found = _run(method, chosen, temperature)
        except DecoderyError as refused:
            reason = str(refused)
            assert not forwards, f"{method} refuses {sorted(chosen)} only after it started"
            assert "\n" not in reason
            assert len(reason) > 20, f"{method} refuses {sorted(chosen)} without a reason"
            continue
        sampled = temperature > 0
        if cls.exactness.lossless and not (sampled and method in RANDOM_DRAFTS):
            expected = _plain(chosen, temperature)
            assert _same(found, expected), f"{method} with {sorted(chosen)} at {temperature}: {found} is not {expected}"


@pytest.mark.parametrize("method", names())
def test_every_setting_alone(method):
    _cell(method, frozenset())
    for name in SETTINGS:
        _cell(method, frozenset({name}))


@pytest.mark.parametrize("first", list(SETTINGS)[:-1])
@pytest.mark.parametrize("method", [name for name in names() if name != "autoregressive"])
def test_every_pair(method, first):
    place = list(SETTINGS).index(first)
    for second in list(SETTINGS)[place + 1 :]:
        _cell(method, frozenset({first, second}))


def test_the_settings_of_the_matrix_are_all_there_are():
    """A new setting must join the matrix."""
    from decodery.engine.settings import declared

    assert set(declared()) <= {*SETTINGS, "seed"}


def test_each_setting_of_the_matrix_does_something():
    """A cell that changes nothing proves nothing."""
    silent = {"session", "packed", "streaming", "cancellation", "logprobs", "echo", "n"}
    partners = {"min_new_tokens": "stop_token_ids", "order": "logit_bias"}  # they do nothing alone
    for name in set(SETTINGS) - silent:
        base = frozenset({partners[name]} if name in partners else ())
        outputs = [(_plain(base, t)[0][0], _plain(base | {name}, t)[0][0]) for t in TEMPERATURES]
        assert any(without != with_it for without, with_it in outputs), f"{name} changes nothing"


@pytest.mark.parametrize("method", CAUSAL)
def test_log_probabilities_are_the_scorer_s_own(method):
    """Whatever drafts and verifies: each token's is that of the target after exactly its prefix."""
    lm = _host()
    for seed in range(4):
        reply = lm.generate(
            PROMPTS[1], method=method, temperature=1.0, top_p=0.9, seed=seed, logprobs=1, max_new_tokens=14
        )
        for place, (token, told) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
            [row] = lm.network.score([(*PROMPTS[1], *reply.token_ids[:place])], True)
            expected = row.log_softmax(dim=-1)
            assert told.raw == pytest.approx(float(expected[token]), abs=1e-5)
            assert told.top[0][0] == int(row.argmax())
