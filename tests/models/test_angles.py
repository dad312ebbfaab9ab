"""Rotary angles that depend on the length of a text: each request has its own, as when transformers generates it alone."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import reference_logits, worst

import decodery
from decodery.models.angles import Angles
from decodery.models.forward import Attend, Forward, Layers, Slots, Tree
from decodery.models.network import TransformersNetwork
from decodery.testing import LetterTokenizer

BORDER = 32
BOUND = 1e-3
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0],
}
COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
KINDS = ("reread", "kept", "stepwise")


@cache
def model_of(kind: str) -> Any:
    """reread: Phi-3 reads its text again at the border. kept: Llama does not. stepwise: dynamic NTK, other angles by length."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        if kind == "reread":
            config: Any = transformers.Phi3Config(
                **COMMON,
                max_position_embeddings=256,
                original_max_position_embeddings=BORDER,
                sliding_window=None,
                rope_parameters=LONGROPE,
            )
            return transformers.Phi3ForCausalLM(config).eval()
        rope = (
            LONGROPE | {"factor": 8.0} if kind == "kept" else {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        )
        places = 256 if kind == "kept" else BORDER
        config = transformers.LlamaConfig(**COMMON, max_position_embeddings=places, rope_parameters=rope)
        return transformers.LlamaForCausalLM(config).eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(7 * i * i + 3 * i + 5 + 11 * seed) % 90 + 3 for i in range(length)]


def generated(kind: str, text: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """What transformers generates, and the logits of each token."""
    # Of a copy: the angles of dynamic NTK stay those of the longest text that a model has seen.
    answer = copy.deepcopy(model_of(kind)).generate(
        torch.tensor([text]), max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return answer.sequences[0, len(text) :].tolist(), torch.cat(answer.logits)


@cache
def network_of(kind: str) -> TransformersNetwork:
    return TransformersNetwork(model_of(kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_of_them(kind: str) -> None:
    assert network_of(kind)._angles == Angles(
        BORDER,
        stepwise=kind == "stepwise",
        rereads=kind == "reread",
        farthest=BORDER * (4 if kind == "stepwise" else 1),
    )
    assert network_of(kind).border == BORDER


def test_usual_angles_depend_on_positions_alone() -> None:
    import transformers

    network = TransformersNetwork(transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON)).eval(), "usual")
    assert network.border is None
    assert network.room(0, 5) > 10**6


@pytest.mark.parametrize("length", [5, BORDER - 1, BORDER, BORDER + 1, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers_generates(kind: str, length: int) -> None:
    """Token by token beside a neighbour of another length, which must not matter."""
    network, text = network_of(kind), prompt(length)
    tokens, expected = generated(kind, text, 40 - length if length < BORDER else 6)
    sequence, neighbour = network.new_sequence(), network.new_sequence()
    rows = [network.run([Forward(neighbour, prompt(60, 1)), Forward(sequence, text)])[1].logits[-1]]
    for i, token in enumerate(tokens[:-1]):
        rows.append(network.run([Forward(sequence, [token]), Forward(neighbour, [i + 1])])[0].logits[0])
    assert worst(torch.stack(rows), expected) < BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_over_the_border(kind: str) -> None:
    network, text = network_of(kind), prompt(BORDER - 4)
    tokens, expected = generated(kind, text, 12)
    sequence = network.new_sequence()
    first = network.run([Forward(sequence, text, logits=[len(text) - 1])])[0].logits
    [rest] = network.run([Forward(sequence, tokens[:-1], taps=(1,))])
    assert worst(torch.cat([first, rest.logits]), expected) < BOUND
    assert rest.hidden[1].shape == (11, 64)
    # Rolled back to before the border, and on along another way.
    sequence.truncate(BORDER - 2)
    again = [*text, *tokens[:2], 9, 8, 7]
    [logits] = network.run([Forward(sequence, [9, 8, 7])])
    fresh = network.new_sequence()
    network.run([Forward(fresh, text)])
    single = [network.run([Forward(fresh, [token])])[0].logits[0] for token in again[len(text) :]]
    assert worst(logits.logits, torch.stack(single[2:])) < BOUND


def test_forks_on_both_sides_of_the_border() -> None:
    network, text = network_of("reread"), prompt(BORDER)
    sequence = network.new_sequence()
    network.run([Forward(sequence, text)])
    twin = sequence.fork()
    [over] = network.run([Forward(twin, [5])])
    [under] = network.run([Forward(sequence, [5], slots=[BORDER - 1], positions=[BORDER - 1])])
    assert worst(over.logits, reference_logits(model_of("reread"), [*text, 5])[-1:]) < BOUND
    assert [sequence.regime, twin.regime] == [0, 1]
    assert worst(under.logits, reference_logits(model_of("reread"), [*text[:-1], 5])[-1:]) < BOUND


def test_what_cannot_be_read_again_says_so() -> None:
    network = network_of("reread")
    positions = [BORDER, BORDER + 1, BORDER + 1]
    rows = network.embed(torch.tensor([4]))
    asks: list[dict[str, Any]] = [
        {"positions": positions, "attend": Tree([-1, -1])},
        {"attend": Attend.FULL},
        {"slots": Slots.NOWHERE},
        {"layers": Layers(0, 2)},
        {"tokens": rows},
    ]
    for ask in asks:
        sequence = network.new_sequence()
        network.run([Forward(sequence, prompt(BORDER))])
        with pytest.raises(ValueError, match="read again with other rotary angles"):
            network.run([Forward(sequence, **{"tokens": [1, 2, 3], **ask})])
    sequence = network.new_sequence()
    network.run([Forward(sequence, rows), Forward(network.new_sequence(), [1])])  # a text that began with an embedding
    network.run([Forward(sequence, prompt(BORDER - 1))])
    with pytest.raises(ValueError, match="read again with other rotary angles"):
        network.run([Forward(sequence, [0])])


def test_room_for_drafts() -> None:
    """(cached, length) -> rows that a draft may add, by kind."""
    border, endless = Angles(10, False, False, 10), 99
    rereads, stepwise = Angles(10, False, True, 10), Angles(10, True, False, 40)
    for cached, length, kept, read, by_step in (
        (0, 4, 6, 6, 6),
        (0, 10, 0, 0, 0),
        (0, 12, endless, endless, 0),
        (3, 4, endless, 6, endless),
        (9, 10, endless, 0, endless),
        (1, 11, endless, 0, endless),
        (10, 11, endless, 0, endless),
        (11, 12, endless, endless, endless),
    ):
        found = [angles.room(cached, length, endless) for angles in (border, rereads, stepwise)]
        assert found == [kept, read, by_step], (cached, length)


@pytest.mark.parametrize("method", ["cascade", "prompt-lookup", "token-recycling", "draft-model(draft=layers)"])
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_do_not_change_what_comes(kind: str, method: str) -> None:
    lm = decodery.wrap(model_of(kind), LetterTokenizer(97))
    for length in (BORDER - 6, BORDER + 6):
        text = (prompt(9) * 6)[:length]
        tokens, _ = generated(kind, text, 20)
        together = lm.generate([text, prompt(7)], method=method, max_new_tokens=20)
        assert together[0].token_ids == tokens
        assert together[1].token_ids == generated(kind, prompt(7), 20)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_beginnings_are_not_shared_where_angles_differ(kind: str) -> None:
    lm = decodery.wrap(model_of(kind), LetterTokenizer(97))
    texts = [prompt(20), prompt(BORDER + 20), prompt(BORDER + 3)]
    replies = lm.generate(texts, method="autoregressive", max_new_tokens=16)
    assert [reply.token_ids for reply in replies] == [generated(kind, text, 16)[0] for text in texts]
