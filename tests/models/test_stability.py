"""In bfloat16 a row's scores must be the same bits whatever rows share its pass, within the network's `stability`."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from decodery.language_model import LanguageModel
from decodery.models.blocks import FusedNetwork
from decodery.models.forward import Forward, tree_mask

PROMPT = [(17 * i + 5) % 190 for i in range(70)]


@pytest.fixture(scope="module")
def network() -> FusedNetwork:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=192,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        initializer_range=0.08,
    )
    made = FusedNetwork(LlamaForCausalLM(config).to(torch.bfloat16), "tiny")
    if made.stability is None:
        pytest.skip("without AMX the fused path promises nothing in bfloat16; the native path does")
    return made


def plain_rows(network: FusedNetwork, prompt: list[int], tokens: list[int]) -> list[torch.Tensor]:
    """Scores of each token, scored one by one after the prompt."""
    sequence = network.new_sequence()
    network.run([Forward(sequence, prompt)])
    return [network.run([Forward(sequence, [token])])[0].logits[0] for token in tokens]


@pytest.mark.parametrize("start", [1, 40, 70, 500])
def test_chains_score_like_single_steps(network: FusedNetwork, start: int) -> None:
    prompt = [(7 * i + 1) % 190 for i in range(start)]
    tokens = [(11 * i + start) % 190 for i in range(31)]
    alone = plain_rows(network, prompt, tokens)
    for count in (2, 3, 8, 16, 17, 31):
        sequence = network.new_sequence()
        network.run([Forward(sequence, prompt)])
        rows = network.run([Forward(sequence, tokens[:count])])[0].logits
        for place in range(count):
            assert torch.equal(rows[place], alone[place]), (count, place)


def differing_tree_rows(network: FusedNetwork, seed: int) -> tuple[int, int]:
    """How many nodes of a random tree differ from the same path scored token by token, and how many there are."""
    generator = torch.Generator().manual_seed(seed)
    start = int(torch.randint(2, 300, (1,), generator=generator))
    prompt = [(5 * i + seed) % 190 for i in range(start)]
    parents = [int(torch.randint(-1, max(node, 1), (1,), generator=generator)) if node else -1 for node in range(10)]
    tokens = torch.randint(0, 190, (10,), generator=generator).tolist()
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    sequence = network.new_sequence()
    network.run([Forward(sequence, prompt)])
    positions = [start, *(start + depth for depth in depths)]
    rows = network.run([Forward(sequence, [3, *tokens], positions, tree_mask(start, 1, parents))])[0].logits
    differing = 0
    for place in range(10):
        path, node = [], place
        while node >= 0:
            path.append(tokens[node])
            node = parents[node]
        alone = plain_rows(network, prompt, [3, *path[::-1]])[-1]
        differing += not torch.equal(rows[place + 1], alone)
    return differing, 10


def test_trees_score_nearly_always_like_single_steps(network: FusedNetwork) -> None:
    """A node's visible rows have gaps, so its sums are grouped otherwise; that shows in few nodes, and stays so."""
    counts = [differing_tree_rows(network, seed) for seed in range(8)]
    assert sum(count for count, _ in counts) <= 0.1 * sum(total for _, total in counts)


def test_the_layout_is_what_makes_it_hold(network: FusedNetwork) -> None:
    """Without padded columns rows do come out differently: the test above would see it."""
    alone = plain_rows(network, PROMPT, PROMPT[:24])
    stability, differing = network.stability, 0
    network.stability = None
    try:
        for start in range(0, 24, 8):
            sequence = network.new_sequence()
            network.run([Forward(sequence, [*PROMPT, *PROMPT[:start]])])
            rows = network.run([Forward(sequence, PROMPT[start : start + 8])])[0].logits
            differing += sum(not torch.equal(rows[i], alone[start + i]) for i in range(8))
    finally:
        network.stability = stability
    assert differing > 0


@pytest.mark.parametrize("spec", ["prompt-lookup", "suffix-automaton", "draft-model(layers=2)"])
def test_chain_drafts_are_identical_in_bfloat16(network: FusedNetwork, spec: str) -> None:
    class Tokens:
        def decode(self, token_ids: object, skip_special_tokens: bool = True) -> str:
            return ""

    lm = LanguageModel(network, Tokens())
    for prompt in (PROMPT, PROMPT[:5], PROMPT[10:30]):
        plain = lm.generate(prompt, "autoregressive", max_new_tokens=48)
        drafted = lm.generate(prompt, spec, max_new_tokens=48)
        assert drafted.token_ids == plain.token_ids
