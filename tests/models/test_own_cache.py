"""Models that cannot be packed: scores, greedy output and law are those of transformers, whatever is drafted and taken back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from own_cache_families import FAMILIES, USUAL, ask, host, make, shared_model, shared_network, whole
from tiny_models import random_ids, worst

import decodery
from decodery.engine.settings import Settings
from decodery.models import own_cache
from decodery.models.cache_states import MOST_STATES, TextCache
from decodery.models.forward import Forward, Rows, Slots
from decodery.models.own_cache import OwnCacheNetwork
from decodery.testing import exact_outputs, total_variation
from decodery.testing.hosts import LetterTokenizer, SmallLanguageModel

BOUND = 1e-3
PROMPT = random_ids(9, seed=4) * 2 + random_ids(5, seed=4)
NEW = 12
CHAINS = (
    "cascade(nodes=8)",
    "prompt-lookup(adapt=false)",
    "token-recycling(nodes=12, seed_from_prompt=true)",
    "draft-model(draft=other)",
)
MORE_CHAINS = (
    "cascade",
    "suffix-automaton",
    "approximate-match-lookup",
    "adaptive-draft-verification",
    "draft-model(draft=ngram)",
    "recursive-speculative-decoding(width=1)",
    "spectr(drafts=1)",
    "optimal-multi-draft(widths=1x1)",
)


def families(*, names: tuple[str, ...] = tuple(FAMILIES)) -> Any:
    slow = pytest.mark.all_families
    return pytest.mark.parametrize(
        "family", [name if name in USUAL else pytest.param(name, marks=slow) for name in names]
    )


@families()
def test_the_way_that_is_right_is_found(family: str) -> None:
    assert shared_network(family).path == FAMILIES[family][0]


@families()
def test_scores_in_pieces_forked_and_taken_back(family: str) -> None:
    network, ids = shared_network(family), random_ids(44, seed=5)
    expected = whole(family, ids)
    first = network.new_sequence()
    assert worst(ask(first, ids[:13]), expected[:13]) < BOUND
    assert worst(ask(first, ids[13:14]), expected[13:14]) < BOUND
    second = first.fork()
    # A draft of which two tokens are kept, then one of which none is, then one that is kept whole.
    ask(first, [*ids[14:17], 1, 2, 3])
    first.keep([14, 15, 16], 14)
    ask(first, [ids[17], 4, 5])
    first.keep([], 18)
    assert worst(ask(first, ids[18:23]), expected[18:23]) < BOUND
    assert worst(ask(first, [6, 7], slots=Slots.NOWHERE), whole(family, [*ids[:23], 6, 7])[23:]) < BOUND
    assert first.tokens == ids[:23]
    assert worst(ask(first, ids[23:], logits=[3, 0, 20]), expected[[26, 23, 43]]) < BOUND
    # The fork knows nothing of that, and two texts of different lengths are answered in one pass.
    third = network.new_sequence()
    found = network.run([Forward(second, ids[14:20]), Forward(third, ids[:2]), Forward(first, [8], logits=Rows.LAST)])
    assert worst(found[0].logits, expected[14:20]) < BOUND
    assert worst(found[1].logits, expected[:2]) < BOUND
    assert worst(found[2].logits, whole(family, [*ids, 8])[-1:]) < BOUND
    # Far back, and from there another way.
    first.truncate(3)
    other = [*ids[:3], *random_ids(6, seed=6)]
    assert worst(ask(first, other[3:]), whole(family, other)[3:]) < BOUND
    first.truncate(0)
    assert worst(ask(first, other), whole(family, other)) < BOUND
    assert first.positions == list(range(9))


@families()
def test_greedy_output_is_that_of_generate(family: str) -> None:
    lm = host(family)
    reply = lm.generate(PROMPT, method="autoregressive", max_new_tokens=NEW, logprobs=0)
    ids = [*PROMPT, *reply.token_ids]
    rows = whole(family, ids)[len(PROMPT) - 1 : -1].log_softmax(1)
    assert reply.token_ids == rows.argmax(1).tolist()
    told = [entry.raw for entry in reply.logprobs]
    assert told == pytest.approx(
        [float(row[token]) for row, token in zip(rows, reply.token_ids, strict=True)], abs=1e-3
    )
    if family != "Roberta":  # whose cached scores are not those of the whole text
        with torch.inference_mode():
            arguments = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
            generated = shared_model(family).generate(torch.tensor([PROMPT]), **arguments)
        assert generated[0, len(PROMPT) :].tolist() == reply.token_ids


@families()
def test_methods_that_draft_chains_give_the_greedy_output(family: str) -> None:
    lm = host(family)
    methods = CHAINS if family != "Lfm2" else (*CHAINS, *MORE_CHAINS)
    expected = lm.generate(PROMPT, method="autoregressive", max_new_tokens=NEW).token_ids
    replies = lm.generate([PROMPT] * len(methods), method=list(methods), max_new_tokens=NEW)
    for method, reply in zip(methods, replies, strict=True):
        assert reply.error is None, (method, reply.error)
        assert reply.token_ids == expected, method
        assert reply.stats.drafted > 0, method


@pytest.mark.parametrize("family", ["Mamba", "FalconH1", "Lfm2"])
def test_drafts_are_accepted_and_rejected(family: str) -> None:
    lm = host(family)
    reply = lm.generate(PROMPT, method="draft-model(draft=other, length=3)", max_new_tokens=24)
    assert 0 < reply.stats.accepted < reply.stats.drafted  # otherwise the tests above prove little


@families(names=USUAL)
def test_sampled_output_is_that_of_plain_sampling(family: str) -> None:
    lm = host(family)
    arguments = {"max_new_tokens": 12, "temperature": 0.8, "top_k": 20, "seed": [7, 8], "repetition_penalty": 1.2}
    plain = [reply.token_ids for reply in lm.generate([PROMPT, PROMPT[:5]], method="autoregressive", **arguments)]
    for method in ("cascade(nodes=6)", "prompt-lookup(adapt=false)", "token-recycling(nodes=8)"):
        assert [reply.token_ids for reply in lm.generate([PROMPT, PROMPT[:5]], method=method, **arguments)] == plain


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("Mamba", "draft-model(draft=other, length=2)"),
        ("Lfm2", "spectr(drafts=1, length=2)"),
        ("Lfm2", "cascade(nodes=2)"),
    ],
)
def test_the_sampled_law(family: str, method: str) -> None:
    network, other = (OwnCacheNetwork(make(family, seed, vocab_size=2), family) for seed in (0, 1))
    lm = SmallLanguageModel(network, LetterTokenizer(2), drafter=other)
    prompt, tokens = [0, 1, 1, 0], 3
    expected = {}
    for output in itertools.product(range(2), repeat=tokens):
        with torch.inference_mode():
            logits = network.model(torch.tensor([[*prompt, *output]]), use_cache=False).logits[0, 3:-1].float()
        chances = logits.double().softmax(1)
        expected[output] = float(torch.tensor([chances[i, token] for i, token in enumerate(output)]).prod())
    found = exact_outputs(lm, method, prompt, Settings(temperature=1.0, max_new_tokens=tokens, seed=0))
    assert sum(found.values()) == pytest.approx(1)
    assert total_variation(found, expected) < 1e-5


@pytest.mark.parametrize("family", ["Mamba", "FalconH1", "Bloom"])
@hypothesis_settings(max_examples=15)
@given(st.data())
def test_any_way_of_getting_to_a_text_gives_its_scores(family: str, data: st.DataObject) -> None:
    sequences = [shared_network(family).new_sequence()]
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(sequences) - 1))
        sequence = sequences[place]
        act = data.draw(st.sampled_from(["append", "append", "truncate", "fork", "nowhere", "take"]))
        if act == "truncate":
            sequence.truncate(data.draw(st.integers(0, sequence.length)))
        elif act == "fork":
            sequences.append(sequence.fork())
        elif act == "take":
            fresh = shared_network(family).new_sequence()
            fresh.take(sequence, data.draw(st.integers(0, sequence.length)))
            sequences.append(fresh)
        else:
            ids = data.draw(st.lists(st.integers(0, 98), min_size=1, max_size=12))
            first = data.draw(st.integers(0, len(ids) - 1))
            before, slots = list(sequence.tokens), Slots.NOWHERE if act == "nowhere" else Slots.APPEND
            found = ask(sequence, ids, logits=range(first, len(ids)), slots=slots)
            assert worst(found, whole(family, [*before, *ids])[len(before) + first :]) < BOUND
            assert sequence.tokens == (before if act == "nowhere" else [*before, *ids])


def counted(family: str) -> tuple[OwnCacheNetwork, list[int]]:
    """A network over the shared model, and how many tokens each call of the model gets from now on."""
    network = OwnCacheNetwork(shared_model(family), family)
    calls: list[int] = []
    call = network._call

    def counting(tokens: Any, *arguments: Any) -> Any:
        calls.append(len(tokens))
        return call(tokens, *arguments)

    network._call = counting  # type: ignore[method-assign]
    return network, calls


@pytest.mark.parametrize(
    ("family", "expected"),
    # By row every state of the draft is there; otherwise what was accepted is read again with what follows, until it is much.
    [("Mamba", [20, *[1] * 5, *[1] * 4]), ("FalconH1", [20, 5, 7]), ("Bloom", [20, 5, 4]), ("OpenAIGPT", [20, 25, 27])],
)
def test_what_is_read_again_after_a_rejection(family: str, expected: list[int]) -> None:
    network, calls = counted(family)
    sequence, ids = network.new_sequence(), random_ids(60, seed=8)
    ask(sequence, ids[:20], logits=Rows.LAST)
    ask(sequence, ids[20:25])
    sequence.keep([21, 22], 21)
    ask(sequence, ids[23:27])
    assert calls == expected


def test_much_that_is_certain_is_read_alone_before_a_draft() -> None:
    network, calls = counted("FalconH1")
    sequence, ids = network.new_sequence(), random_ids(60, seed=8)
    ask(sequence, ids[:30], logits=range(24, 30))  # a prompt of 25 tokens with a draft of 5
    sequence.truncate(25)
    ask(sequence, ids[25:27])
    sequence.truncate(26)
    for place in range(26, 50):  # each time a draft of two of which nothing is kept
        ask(sequence, [ids[place], 1, 2])
        sequence.truncate(place + 1)
    assert calls[:3] == [25, 5, 2]
    assert max(calls[3:]) <= own_cache.REREAD_ROWS + 2
    assert worst(ask(sequence, [3]), whole("FalconH1", [*ids[:50], 3])[-1:]) < BOUND


def test_plain_decoding_runs_one_row_a_token_and_keeps_keys_once() -> None:
    network, calls = counted("FalconH1")
    sequence, ids = network.new_sequence(), random_ids(70, seed=9)
    ask(sequence, ids[:20], logits=Rows.LAST)
    for token in ids[20:]:
        ask(sequence, [token])
    assert calls == [20] + [1] * 50
    cache = sequence.cache
    assert isinstance(cache, TextCache)
    assert len(cache.state_bytes) == MOST_STATES
    assert len({size for _, size in cache.state_bytes}) == 1  # no state holds keys of its own
    assert network.cache_bytes(70) >= 70 * cache.row_bytes + MOST_STATES * cache.state_bytes[-1][1]
    assert sequence.fork().cache._trunk is cache._trunk  # what is shared is not copied


@pytest.mark.parametrize(
    ("family", "stop", "expected"), [("FalconH1", 20, 1), ("FalconH1", 19, 20), ("Bloom", 19, 1), ("Mamba", 21, 1)]
)
def test_what_is_taken_from_another_text_is_not_read_again(family: str, stop: int, expected: int) -> None:
    network, calls = counted(family)
    first, second, ids = network.new_sequence(), network.new_sequence(), random_ids(30, seed=18)
    ask(first, ids[:20], logits=Rows.LAST)
    ask(first, ids[20:21])
    second.take(first, stop)
    found = ask(second, ids[stop : stop + 1])
    assert calls == [20, 1, expected]
    assert worst(found, whole(family, ids)[stop : stop + 1]) < BOUND


def test_large_states_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decodery.models.cache_states.MOST_BYTES", 1)
    network = OwnCacheNetwork(shared_model("Mamba"), "Mamba")
    sequence, ids = network.new_sequence(), random_ids(40, seed=10)
    ask(sequence, ids[:20], logits=Rows.LAST)
    ask(sequence, ids[20:30])
    assert [length for length, _ in sequence.cache.state_bytes] == [21, 30]  # type: ignore[attr-defined]
    sequence.truncate(24)
    assert worst(ask(sequence, ids[24:26]), whole("Mamba", ids[:26])[24:]) < BOUND


@pytest.mark.parametrize("family", ["Mamba", "FalconH1"])
def test_samples_of_a_prompt_share_it(family: str) -> None:
    lm = host(family)
    prompt = random_ids(40, seed=11)
    alone = [
        lm.generate(prompt, method="autoregressive", max_new_tokens=8, temperature=1.0, seed=s).token_ids
        for s in (1, 2)
    ]
    replies = lm.generate([prompt, prompt], method="autoregressive", max_new_tokens=8, temperature=1.0, seed=[1, 2])
    assert [reply.token_ids for reply in replies] == alone
    assert replies[1].stats.shared_rows == 40


def test_long_prompts_are_read_in_pieces_beside_others() -> None:
    lm = host("FalconH1")
    lm.scheduling = decodery.engine.scheduler.Scheduling(chunk=16)
    prompts = [random_ids(50, seed=12), random_ids(6, seed=13)]
    alone = [lm.generate(prompt, max_new_tokens=10).token_ids for prompt in prompts]
    assert [reply.token_ids for reply in lm.generate(prompts, max_new_tokens=10)] == alone


def test_a_request_that_stops_or_is_cancelled_leaves_the_others_alone() -> None:
    lm = host("Lfm2")
    expected = lm.generate(PROMPT, method="autoregressive", max_new_tokens=NEW).token_ids
    stopped = lm.generate(PROMPT, method="cascade", max_new_tokens=NEW, stop_token_ids=[expected[5]])
    assert stopped.token_ids == expected[: expected.index(expected[5]) + 1]
    stream = lm.stream([PROMPT, PROMPT[:7]], method="cascade", max_new_tokens=NEW)
    next(iter(stream))
    stream.close()
    assert {reply.finish_reason for reply in stream.replies()} == {"cancelled"}
    assert lm.generate(PROMPT, method="cascade", max_new_tokens=NEW).token_ids == expected


def test_prompt_scores() -> None:
    lm = host("Mamba")
    reply = lm.generate(PROMPT, max_new_tokens=2, echo=True, logprobs=1)
    rows = whole("Mamba", PROMPT).log_softmax(1)
    told = [entry.raw for entry in reply.prompt_logprobs]
    assert told == pytest.approx([float(rows[i, token]) for i, token in enumerate(PROMPT[1:])], abs=1e-3)
