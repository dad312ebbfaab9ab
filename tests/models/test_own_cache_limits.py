"""Models that cannot be packed: what is refused, how a network is chosen for them, and that they stay their owners'."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from own_cache_families import ask, host, make, shared_model, shared_network, whole
from tiny_models import random_ids, worst

import decodery
from decodery.errors import ModelNotReadable, Refused
from decodery.models.forward import Attend, Forward, Layers, Tree
from decodery.models.own_cache import OwnCacheNetwork
from decodery.models.paths import network_for
from decodery.testing.hosts import LetterTokenizer, SmallLanguageModel

BOUND = 1e-3
PROMPT = random_ids(9, seed=4) * 2 + random_ids(5, seed=4)


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
    assert "mamba runs one text at a time" in caplog.text
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
