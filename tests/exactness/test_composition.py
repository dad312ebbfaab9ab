"""All methods with all settings: what composes gives plain decoding's output, what does not is refused before work.

The matrix is generated. By default it is one of mechanisms: for each way in which methods work (their loop, their guarantee,
what they need) one method, with every step of the law and every rule of the end in every way of running; and a row for each
method with all that it takes at once. `make test-all` tries every method with every pair of settings.

Each cell must run or be refused in one sentence before the first forward. Where a method is lossless, the output of a cell is
that of plain decoding under the same settings; where it promises the same tokens, this holds for sampled output too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from mechanisms import CAUSAL, one_of_each

from decodery.engine.events import Finished, Token
from decodery.engine.needs import Scoring
from decodery.engine.registry import MethodInfo, find, names
from decodery.errors import ConstraintFailed, DecoderyError
from decodery.models.kinds import Kind
from decodery.sampling.steps import default_order, steps
from decodery.testing import (
    InserterScorer,
    SmallLanguageModel,
    inserting_language_model,
    random_script,
    scripted_language_model,
    story_scorer,
    toy_any_order_model,
    toy_diffusion_model,
    watched,
)

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
    "min_new_tokens": {"min_new_tokens": 6},
    "processors": {"processors": [_not_the_successor]},
    "typical_p": {"typical_p": 0.3},
    "typical_min_keep": {"typical_p": 0.05, "typical_min_keep": 3},
    "top_n_sigma": {"top_n_sigma": 0.9},
    "top_h": {"top_h": 0.5},
    "tail_free": {"tail_free": 0.8},
    "epsilon_cutoff": {"epsilon_cutoff": 0.03},
    "eta_cutoff": {"eta_cutoff": 0.3},
    "xtc_probability": {"xtc_probability": 0.6},
    "xtc_threshold": {"xtc_probability": 0.6, "xtc_threshold": 0.04},
    "dry_multiplier": {"dry_multiplier": 3.0},
    "dry_base": {"dry_multiplier": 2.0, "dry_allowed_length": 1, "dry_base": 4.0},
    "dry_allowed_length": {"dry_multiplier": 3.0, "dry_allowed_length": 1},
    "dry_penalty_last_n": {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_penalty_last_n": 5},
    "dry_sequence_breakers": {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_sequence_breakers": ["b", [8]]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words": ["ef", [8], [4, 5, 6]]},
    "allowed_token_ids": {"allowed_token_ids": [*range(0, 20, 2), 3, 5, 7, END, 15]},
    "mirostat": {"mirostat": 2, "mirostat_tau": 1.0},
    "mirostat_tau": {"mirostat": 1, "mirostat_tau": 2.0},
    "mirostat_eta": {"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.9},
    "dynatemp_range": {"dynatemp_range": 1.5},
    "dynatemp_exponent": {"dynatemp_range": 1.5, "dynatemp_exponent": 3.0},
    "momentum_alpha": {"momentum_alpha": 0.2},
    "momentum_k": {"momentum_alpha": 0.2, "momentum_k": 2},
    "momentum_longest": {"momentum_alpha": 0.02, "momentum_longest": 2},
    "momentum_resistance": {"momentum_alpha": 0.2, "momentum_resistance": [0.0, 9.0]},
    "momentum_ends_resist": {"momentum_alpha": 0.2, "momentum_ends_resist": True, "stop_token_ids": [2]},
    "watermark": {"watermark": {"scheme": "kgw", "key": 7, "vocabulary": VOCABULARY}},
    "structured_outputs": {"structured_outputs": {"regex": "(c?[^c-k])*c?"}},
    "order": {"order": ["temperature", *(step for step in default_order()[::-1] if step != "temperature")]},
    "chance": {"chance": "gumbel"},
    "stop": {"stop": ["sa", "isb", "zz"]},
    "stop_token_ids": {"stop_token_ids": [15, 8]},
    "ignore_eos": {"ignore_eos": True},
    "echo": {"echo": True},
    "n": {"n": 2},
    "logprobs": {"logprobs": 2},
    "stopping_criteria": {"stopping_criteria": [_fifteen_tokens]},
    "session": {"session": "another"},
    "target": {"target": "guidance(scale=1.5)"},
    "max_new_tokens": {"max_new_tokens": 5},
    "streaming": {},
    "packed": {},
    "cancellation": {},
}  # fmt: skip
"""What may be asked for, and an instance of it. The last three are ways to run."""
GREEDY_ONLY = {own.name for step in steps().values() if step.greedy_only for own in step.settings()}

PROMPTS = [[12, 20], [0, 1, 2, 3, 0, 1], [5]]
CANCEL_AFTER = 4

Outcome = list[tuple[tuple[int, ...], str, tuple[Any, ...], str]]
"""Per reply: tokens, text, log probabilities, reason of its end."""


@cache
def _host(kind: Kind = Kind.NEXT_TOKEN) -> SmallLanguageModel:
    if kind is Kind.INSERTIONS:
        return inserting_language_model(InserterScorer(VOCABULARY, random_script(VOCABULARY, 9)))
    if kind is not Kind.NEXT_TOKEN:
        make = toy_diffusion_model if kind is Kind.MASKED_POSITIONS else toy_any_order_model
        return make(vocabulary=VOCABULARY, layers=1, canvas=6, stop_ids=(END,))
    return scripted_language_model(
        story_scorer(VOCABULARY), stop_ids=(END,), drafter=story_scorer(VOCABULARY, surprise=0.5, name="other")
    )


def _kind(method: str) -> Kind:
    """Of the models that a method decodes with."""
    return next(need.kind for need in find(method).needs if isinstance(need, Scoring))


PLAIN = {Kind.NEXT_TOKEN: "autoregressive", Kind.ANY_ORDER: "any-subset-autoregressive"}
"""What a lossless method gives the output of, by the kind of its models."""
SMALLER = {"qmcpy": "qmcpy(replications=2, least=2, samples=4)"}
"""Methods whose defaults draw much."""


def _run(method: str, chosen: frozenset[str], temperature: float) -> Outcome:
    lm = _host(_kind(method))
    arguments: dict[str, Any] = {"max_new_tokens": 14, "temperature": temperature}
    arguments["method"] = SMALLER.get(method, MethodInfo.of(find(method)).example)
    for name in sorted(chosen):
        arguments |= SETTINGS[name]
    prompt: Any = PROMPTS if "packed" in chosen else PROMPTS[1]
    if chosen & {"streaming", "cancellation"}:
        return _streamed(lm, prompt, arguments | {"seed": 8}, "cancellation" in chosen)
    given = lm.generate(prompt, seed=8, **arguments)
    replies = [reply for entry in (given if isinstance(given, list) else [given])
               for reply in (entry if isinstance(entry, list) else [entry])]  # fmt: skip
    for reply in replies:
        # Texts that no way leads to the end of: plain decoding under a mask would not know.
        assert reply.error is None or (method == "awrs" and isinstance(reply.error, ConstraintFailed))
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
def _plain(chosen: frozenset[str], temperature: float, kind: Kind = Kind.NEXT_TOKEN) -> Outcome:
    return _run(PLAIN[kind], chosen, temperature)


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


def _cell(method: str, chosen: frozenset[str], temperatures: Sequence[float] = TEMPERATURES) -> None:
    """Try one cell of the matrix, by default greedily and sampled."""
    cls = find(method)
    for temperature in temperatures:
        if temperature == 0.0 and "temperature" in chosen:
            continue
        if temperature > 0.0 and len(chosen) > 3:  # many at once: those that run
            chosen = chosen - GREEDY_ONLY
        forwards: list[object] = []
        try:
            with watched(_host(_kind(method)).network, forwards.append):
                found = _run(method, chosen, temperature)
        except DecoderyError as refused:
            reason = str(refused)
            assert not forwards, f"{method} refuses {sorted(chosen)} only after it started"
            assert "\n" not in reason
            assert len(reason) > 20, f"{method} refuses {sorted(chosen)} without a reason"
            continue
        sampled = temperature > 0
        if cls.exactness.lossless and (not sampled or cls.exactness.same_tokens):
            expected = _plain(chosen, temperature, _kind(method))
            assert _same(found, expected), f"{method} with {sorted(chosen)} at {temperature}: {found} is not {expected}"


WAYS = (("packed", "session", "logprobs"), ("streaming", "echo"), ("n",), ("cancellation",))
"""Ways of running, which change no token; those that go together are tried together."""
ENDS = ("stop", "stop_token_ids", "ignore_eos", "min_new_tokens", "stopping_criteria", "max_new_tokens")
STEPS = [name for name in SETTINGS if not any(name in way for way in WAYS)]


@pytest.mark.parametrize("method", [name for name in one_of_each() if name != "autoregressive"])
def test_every_mechanism_with_every_step_in_every_way(method: str) -> None:
    """Sampled in each way, where every step matters, and greedily by itself."""
    for step in STEPS:
        _cell(method, frozenset({step}), TEMPERATURES[:1])
        for way in WAYS:
            _cell(method, frozenset({step, *way}), TEMPERATURES[1:])


@pytest.mark.parametrize("method", names())
def test_every_method_with_all_that_it_takes(method: str) -> None:
    # In another order the filters may come first, and what they leave is forbidden then.
    law = [name for name in STEPS if name not in (*find(method).refuses, *ENDS, "order")]
    for chosen in ([], [*law, "packed"], [*law, *ENDS, "streaming"], ["n", "logprobs"], ["echo", "session"]):
        _cell(method, frozenset(chosen))


@pytest.mark.all_pairs
@pytest.mark.parametrize("method", names())
def test_every_setting_alone(method: str) -> None:
    _cell(method, frozenset())
    for name in SETTINGS:
        _cell(method, frozenset({name}))


@pytest.mark.all_pairs
@pytest.mark.parametrize("first", list(SETTINGS)[:-1])
@pytest.mark.parametrize("method", [name for name in names() if name != "autoregressive"])
def test_every_pair(method: str, first: str) -> None:
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
    partners |= {own.name: step.settings()[0].name for step in steps().values() for own in step.settings()[1:]}
    for name in set(SETTINGS) - silent:
        base = frozenset({partners[name]} if name in partners else ())
        temperatures = TEMPERATURES[:1] if name in GREEDY_ONLY else TEMPERATURES
        outputs = [(_plain(base, t)[0][0], _plain(base | {name}, t)[0][0]) for t in temperatures]
        assert any(without != with_it for without, with_it in outputs), f"{name} changes nothing"


@pytest.mark.parametrize(
    "method",
    [name for name in CAUSAL if name not in ("soft-thinking", "diffadapt") and "logprobs" not in find(name).refuses],
)
def test_log_probabilities_are_the_scorer_s_own(method):
    """Whatever drafts and verifies: each token's is that of the target after exactly its prefix. Soft thinking has read other
    things than it has written, and tells what it was given by; diffadapt reads its strategy's text, too."""
    lm = _host()
    for seed in range(4):
        drawn = {} if "temperature" in find(method).refuses else {"temperature": 1.0, "top_p": 0.9}
        reply = lm.generate(PROMPTS[1], method=method, seed=seed, logprobs=1, max_new_tokens=14, **drawn)
        for place, (token, told) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
            [row] = lm.network.score([(*PROMPTS[1], *reply.token_ids[:place])], True)
            expected = row.log_softmax(dim=-1)
            assert told.raw == pytest.approx(float(expected[token]), abs=1e-5)
            assert told.top[0][0] == int(row.argmax())
