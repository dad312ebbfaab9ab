"""Models that cannot be packed: scores, greedy output and law are those of transformers, whatever is drafted and taken back."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from own_cache_families import FAMILIES, USUAL, host, make, shared_model, shared_network, whole
from tiny_models import random_ids, worst

import decodery
from decodery.engine.settings import Settings
from decodery.errors import ModelNotReadable, Refused
from decodery.models import own_cache
from decodery.models.checkpoints import MOST_CHECKPOINTS, TextCache
from decodery.models.forward import Attend, Forward, Layers, Rows, Slots, Tree
from decodery.models.own_cache import OwnCacheNetwork
from decodery.models.paths import network_for
from decodery.models.sequence import Sequence
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


def ask(sequence: Sequence, ids: list[int], **arguments: Any) -> torch.Tensor:
    [scores] = sequence.owner.run([Forward(sequence, ids, **arguments)])
    return scores.logits


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
    assert len(cache.state_bytes) == MOST_CHECKPOINTS
    assert len({size for _, size in cache.state_bytes}) == 1  # no state holds keys of its own
    assert network.cache_bytes(70) >= 70 * cache.row_bytes + MOST_CHECKPOINTS * cache.state_bytes[-1][1]
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
    monkeypatch.setattr("decodery.models.checkpoints.MOST_BYTES", 1)
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


# What is refused


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("swift", "swift drafts with some of the target's layers"),
        ("del", "del drafts with the target's first layers"),
        ("draft-model", "with draft=layers drafts with the target's first layers"),
        ("draft-model(draft=other, width=2)", "draws draft trees, unless width=1"),
        ("recursive-speculative-decoding", "draws draft trees, unless width=1"),
        ("recursive-speculative-decoding(tree=branching)", "draws draft trees, unless branching=1x1x1"),
        ("spectr", "draws draft trees, unless drafts=1"),
        ("optimal-multi-draft", "draws draft trees, unless widths=1x1x1"),
        ("masked-diffusion", "Mamba is a causal one"),
    ],
)
def test_methods_that_ask_for_more_are_refused_before_work(method: str, reason: str) -> None:
    lm = host("Mamba")
    with pytest.raises(Refused, match=reason):
        lm.generate(PROMPT, method=method, max_new_tokens=4)


def test_a_draft_model_of_chains_alone_is_refused_trees() -> None:
    from decodery.testing import toy_language_model

    lm = toy_language_model()
    model = make("Mamba", vocab_size=lm.network.vocabulary)
    lm.companions["recurrent"] = SmallLanguageModel(OwnCacheNetwork(model, "recurrent"), lm.tokenizer)
    with pytest.raises(
        Refused, match="spectr draws draft trees, unless drafts=1, and recurrent keeps a cache of its own"
    ):
        lm.generate("abc", method="spectr(draft=recurrent)", max_new_tokens=4)
    plain = lm.generate("abcabc", method="autoregressive", max_new_tokens=12).token_ids
    assert lm.generate("abcabc", method="draft-model(draft=recurrent)", max_new_tokens=12).token_ids == plain


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"layers": Layers(0, 1)}, "no layers can be left out"),
        ({"taps": (1,)}, "hidden rows cannot be looked at"),
        ({"slots": [1, 2]}, "no rows of it can be rewritten"),
        ({"positions": [5, 6]}, "positions cannot be chosen"),
        ({"attend": Attend.FULL}, "a mask cannot be given"),
        ({"attend": Tree([-1, -1]), "positions": [4, 4]}, "drafts cannot be trees"),
        ({"attend": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]]).bool()}, "a mask cannot be given"),
    ],
)
def test_forwards_that_ask_for_more_are_refused(arguments: dict[str, Any], reason: str) -> None:
    sequence = shared_network("Mamba").new_sequence()
    ask(sequence, [1, 2, 3, 4])
    with pytest.raises(Refused, match=reason):
        ask(sequence, [5, 6], **arguments)
    assert sequence.tokens == [1, 2, 3, 4]


def test_embeddings_are_refused() -> None:
    with pytest.raises(Refused, match="embeddings cannot be given"):
        ask(shared_network("Mamba").new_sequence(), torch.zeros(2, 32))  # type: ignore[arg-type]


def test_asks_that_say_the_same_as_a_chain_are_answered() -> None:
    expected = whole("Mamba", [1, 2, 3, 4, 5, 6])[4:]
    seen = torch.ones(2, 6, dtype=torch.bool).tril(4)
    for arguments in ({"attend": Tree([-1, 0])}, {"attend": seen}, {"slots": [4, 5]}, {"layers": Layers(0, 2)}):
        sequence = shared_network("Mamba").new_sequence()
        ask(sequence, [1, 2, 3, 4])
        assert worst(ask(sequence, torch.tensor([5, 6]), **arguments), expected) < BOUND  # type: ignore[arg-type]


def test_a_pass_that_fails_leaves_every_text_as_it_was() -> None:
    network = shared_network("Mamba")
    first, second = network.new_sequence(), network.new_sequence()
    with pytest.raises(Refused):
        network.run_pass([Forward(first, [1, 2]), Forward(second, [3, 4], attend=Attend.FULL)])
    assert first.length == second.length == 0


def test_models_that_give_no_causal_scores_are_refused() -> None:
    with pytest.raises(ModelNotReadable, match="scores a token by what comes after it too"):
        OwnCacheNetwork(make("Bert", is_decoder=False), "bert")


def test_a_model_that_is_being_trained_is_decoded_with_as_it_is() -> None:
    model = make("GPTJ", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    network, ids = OwnCacheNetwork(model, "gptj"), random_ids(12, seed=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sequence = network.new_sequence()
        found = torch.cat([ask(sequence, ids[:5]), ask(sequence, ids[5:])])
        assert all(module.training for module in model.modules())
        model.eval()
        with torch.inference_mode():
            assert worst(found, model(torch.tensor([ids])).logits[0]) < BOUND
    model.train()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    found = ask(network.new_sequence(), ids)
    model.eval()
    with torch.inference_mode():
        assert worst(found, model(torch.tensor([ids])).logits[0]) < BOUND


def test_a_model_with_other_weights_in_training_is_refused_there() -> None:
    model = make("Rwkv")
    network = OwnCacheNetwork(model, "rwkv")
    model.train()
    with pytest.raises(Refused, match=r"other weights in training mode; call its eval\(\)"):
        ask(network.new_sequence(), [1, 2])


def test_a_wrapped_model_is_still_its_owners() -> None:
    model = make("FalconH1")
    network, ids = OwnCacheNetwork(model, "falcon"), random_ids(20, seed=17)
    expected = whole("FalconH1", ids)
    generated: list[list[int]] = []
    prompt, arguments = torch.tensor([ids]), {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}

    def generate() -> None:
        for _ in range(4):
            generated.append(model.generate(prompt, **arguments)[0].tolist())

    thread = threading.Thread(target=generate)
    thread.start()
    while thread.is_alive():
        sequence = network.new_sequence()
        found = torch.cat([ask(sequence, ids[a:b]) for a, b in ((0, 9), (9, 10), (10, 20))])
        assert worst(found, expected) < BOUND
    assert generated == [model.generate(prompt, **arguments)[0].tolist()] * 4


# What a network is made of


def test_a_model_that_cannot_be_packed_is_run_by_its_own_cache(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "decodery")
    lm = decodery.wrap(make("Mamba"), LetterTokenizer(99), name="mamba")
    assert lm.network.path == "own-cache-by-row"  # type: ignore[attr-defined]
    assert "mamba cannot be packed" in caplog.text
    expected = shared_model("Mamba").generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert lm.generate(PROMPT, max_new_tokens=8).token_ids == expected[0, len(PROMPT) :].tolist()
    with pytest.raises(decodery.BadSetting, match="cannot run on the fused path"):
        decodery.wrap(make("Mamba"), LetterTokenizer(99), name="mamba", fast="fused")


def test_a_canvas_needs_more_than_an_own_cache() -> None:
    with pytest.raises(ModelNotReadable):
        network_for(make("Mamba"), "mamba", "off", bidirectional=True)


def test_nothing_of_the_model_is_changed() -> None:
    model = make("FalconH1")
    before = model.config.to_dict()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    network = OwnCacheNetwork(model, "falcon")
    ask(network.new_sequence(), [1, 2, 3])
    assert model.config.to_dict() == before
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits(dtype: torch.dtype) -> None:
    model = make("FalconH1").to(dtype)
    network = OwnCacheNetwork(model, "half")
    assert network.path == "own-cache"
    sequence, ids = network.new_sequence(), random_ids(24, seed=14)
    found = torch.cat([ask(sequence, ids[a:b]) for a, b in ((0, 9), (9, 10), (10, 24))])
    expected = whole("FalconH1", ids)
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.1


def test_angles_that_depend_on_the_length_need_the_whole_text() -> None:
    scaled = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    network = OwnCacheNetwork(make("Lfm2", rope_parameters=scaled, max_position_embeddings=32), "scaled")
    assert network.path == "reread"
    sequence, ids = network.new_sequence(), random_ids(31, seed=15)
    for edges in ((0, 20), (20, 30), (30, 31)):
        ask(sequence, ids[slice(*edges)])
    assert network.cache_bytes(100) == 0
