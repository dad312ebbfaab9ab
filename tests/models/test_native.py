"""The native path: the same scores as transformers' within bfloat16's rounding, and every row the same bits in any company."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import make_model, random_ids, reference_logits
from torch import Tensor, nn

from decodery.errors import BadSetting
from decodery.models.forward import POST_NORM, Attend, Forward, Layers, Slots, Tree, tree_mask
from decodery.models.native import build, compiling
from decodery.models.native.network import NativeNetwork
from decodery.models.network import TransformersNetwork
from decodery.models.paths import network_for

SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 208,
    "max_position_embeddings": 2048,
}
FAMILIES = ("llama", "qwen2", "qwen2-sliding", "qwen3", "mistral", "llama-biases", "gemma3")


def make(family: str) -> Any:
    own: dict[str, Any] = dict(SHAPE)
    if family.startswith("qwen2"):  # it has no head_dim of its own
        own = {**SHAPE, "hidden_size": 384}
    if family == "llama-biases":
        own |= {"attention_bias": True, "mlp_bias": True}
    model = make_model(family.removesuffix("-biases"), **own)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(0.4)
            elif "bias" in name:
                parameter.normal_(0.0, 0.3)
    return model.to(torch.bfloat16)


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> NativeNetwork:
    return native(request.param)


_made: dict[str, NativeNetwork] = {}


def native(family: str) -> NativeNetwork:
    if family not in _made:
        try:
            _made[family] = NativeNetwork.of(make(family), family)
        except build.NotBuilt as reason:
            pytest.skip(str(reason))
    return _made[family]


def scores(network: NativeNetwork, *forwards: Forward) -> list[Tensor]:
    return [answer.logits for answer in network.run(list(forwards))]


def test_scores_are_those_of_transformers(network: NativeNetwork) -> None:
    ids = random_ids(150, vocabulary=200)
    sequence = network.new_sequence()
    ours = torch.cat([scores(network, Forward(sequence, chunk))[0] for chunk in (ids[:100], ids[100:101], ids[101:])])
    exact = reference_logits(network.model.float(), ids)
    network.model.to(torch.bfloat16)
    rounded = reference_logits(network.model, ids)
    spread = float(exact.std())
    # Closer to the float32 result than transformers' own bfloat16 passes are, up to a little luck.
    assert (
        float((ours - exact).square().mean().sqrt())
        < 1.1 * float((rounded - exact).square().mean().sqrt())
        < 0.2 * spread
    )


def alone(network: NativeNetwork, prompt: list[int], tokens: list[int]) -> list[Tensor]:
    """Scores of each token, scored one by one after the prompt."""
    sequence = network.new_sequence()
    network.run([Forward(sequence, prompt)])
    return [scores(network, Forward(sequence, [token]))[0][0] for token in tokens]


@pytest.mark.parametrize("start", [1, 31, 70, 300])
def test_a_chain_scores_like_single_steps(network: NativeNetwork, start: int) -> None:
    prompt, tokens = random_ids(start, 1, 200), random_ids(70, 2, 200)
    expected = alone(network, prompt, tokens)
    for count in (2, 15, 16, 17, 33, 70):
        sequence = network.new_sequence()
        network.run([Forward(sequence, prompt)])
        rows = scores(network, Forward(sequence, tokens[:count]))[0]
        assert all(torch.equal(row, expected[place]) for place, row in enumerate(rows)), count


@pytest.mark.parametrize("length", [200, 258, 273, 530])
def test_a_prompt_scores_the_same_in_any_chunks(network: NativeNetwork, length: int) -> None:
    ids = random_ids(length, 3, 200)
    whole = scores(network, Forward(network.new_sequence(), ids))[0]
    sequence = network.new_sequence()
    chunks = [scores(network, Forward(sequence, chunk))[0] for chunk in (ids[:1], ids[1:40], ids[40:127], ids[127:])]
    assert torch.equal(torch.cat(chunks), whole)


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_scores_like_its_paths(network: NativeNetwork, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = int(torch.randint(2, 260, (1,), generator=generator))
    prompt, count = random_ids(start, seed, 200), 24
    parents = [int(torch.randint(-1, max(node, 1), (1,), generator=generator)) if node else -1 for node in range(count)]
    tokens, depths = random_ids(count, seed + 50, 200), []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    sequence = network.new_sequence()
    network.run([Forward(sequence, prompt)])
    positions = [start, *(start + depth for depth in depths)]
    by_mask = Forward(sequence, [3, *tokens], positions, tree_mask(start, 1, parents), slots=Slots.NOWHERE)
    masked = scores(network, by_mask)[0]
    rows = scores(network, Forward(sequence, [3, *tokens], positions, Tree(parents)))[0]
    assert torch.equal(rows, masked)
    for place in range(count):
        path, node = [], place
        while node >= 0:
            path.append(node)
            node = parents[node]
        expected = alone(network, prompt, [3, *(tokens[node] for node in path[::-1])])[-1]
        assert torch.equal(rows[place + 1], expected), place
    # The accepted path stays, and what follows scores as if it had been decoded step by step.
    path = path[::-1]
    sequence.keep([start + 1 + node for node in path], start + 1)
    expected = alone(network, prompt, [3, *(tokens[node] for node in path), 9])[-1]
    assert torch.equal(scores(network, Forward(sequence, [9]))[0][0], expected)


def test_packed_sequences_score_as_alone(network: NativeNetwork) -> None:
    prompts = [random_ids(count, count, 200) for count in (3, 90, 41, 200)]
    tails = [random_ids(count, count + 7, 200) for count in (1, 5, 17, 2)]
    expected = [alone(network, prompt, tail) for prompt, tail in zip(prompts, tails, strict=True)]
    sequences = [network.new_sequence() for _ in prompts]
    network.run([Forward(s, p) for s, p in zip(sequences, prompts, strict=True)])
    together = scores(network, *(Forward(s, t) for s, t in zip(sequences, tails, strict=True)))
    for rows, single in zip(together, expected, strict=True):
        assert torch.equal(rows, torch.stack(single))


def test_a_pass_may_be_cut_at_any_layer(network: NativeNetwork) -> None:
    prompt, tokens = random_ids(50, 4, 200), random_ids(6, 5, 200)
    whole = network.new_sequence()
    network.run([Forward(whole, prompt)])
    expected = network.run([Forward(whole, tokens, taps=(1, 3, POST_NORM))])[0]
    for cut in (1, 3):
        sequence = network.new_sequence()
        network.run([Forward(sequence, prompt)])
        start = network.run([Forward(sequence, tokens, layers=Layers(0, cut), taps=(cut - 1,))])[0]
        slots = range(50, 56)
        rest = Forward(
            sequence, start.hidden[cut - 1], positions=slots, slots=slots, layers=Layers(cut), taps=(3, POST_NORM)
        )
        answer = network.run([rest])[0]
        assert torch.equal(answer.logits, expected.logits)
        assert torch.equal(answer.hidden[POST_NORM], expected.hidden[POST_NORM])


def test_full_attention_masks_and_nowhere(network: NativeNetwork) -> None:
    """Against the path of torch modules, whose float32 results are checked elsewhere."""
    slow = network_for(network.model, network.name, "off")
    ids, block = random_ids(30, 6, 200), random_ids(9, 7, 200)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(9, 39, generator=generator) < 0.5
    mask[:, :30] |= torch.arange(30) < 3
    answers = []
    for scorer in (network, slow):
        sequence = scorer.new_sequence()
        scorer.run([Forward(sequence, ids)])
        full = scorer.run([Forward(sequence, block, attend=Attend.FULL, slots=Slots.NOWHERE)])[0].logits
        assert sequence.length == 30
        masked = scorer.run([Forward(sequence, block, attend=mask, positions=range(20, 29), taps=(2,))])[0]
        again = scorer.run([Forward(sequence, [5, 6], positions=[20, 21], slots=[33, 30])])[0].logits
        answers.append((full, masked.logits, masked.hidden[2].float(), again))
    for ours, theirs in zip(*answers, strict=True):
        assert float((ours - theirs).square().mean().sqrt()) < 0.1 * float(theirs.std())


def test_layers_may_be_left_out(network: NativeNetwork) -> None:
    slow = network_for(network.model, network.name, "off")
    ids = random_ids(20, 8, 200)
    layers = Layers(skip=frozenset({1}))
    ours, theirs = (n.run([Forward(n.new_sequence(), ids, layers=layers)])[0].logits for n in (network, slow))
    assert float((ours - theirs).square().mean().sqrt()) < 0.1 * float(theirs.std())


@pytest.mark.parametrize(
    "layers", [Layers(skip_attention=frozenset({1})), Layers(skip_mlp=frozenset({0, 2}), skip_attention=frozenset({2}))]
)
def test_halves_of_layers_may_be_left_out(network: NativeNetwork, layers: Layers) -> None:
    slow = network_for(network.model, network.name, "off")
    ids = random_ids(20, 8, 200)
    ours, theirs = (n.run([Forward(n.new_sequence(), ids, layers=layers)])[0].logits for n in (network, slow))
    assert float((ours - theirs).square().mean().sqrt()) < 0.1 * float(theirs.std())


def test_heads_of_any_layer(network: NativeNetwork) -> None:
    slow = network_for(network.model, network.name, "off")
    rows = network.run([Forward(network.new_sequence(), random_ids(9, 2, 200), taps=(1, 3))])[0]
    some = torch.tensor([5, 0, 77])
    for layer in (1, 3):
        whole = network.head()(rows.hidden[layer])
        expected = slow.head()(rows.hidden[layer])
        assert float((whole - expected).square().mean().sqrt()) < 0.03 * float(expected.std())
        assert float((network.head(some)(rows.hidden[layer]) - whole[:, some]).abs().max()) < 0.05 * float(whole.std())
        bare = network.head(normed=False)(rows.hidden[layer])
        with torch.inference_mode():
            alone = network.model.get_output_embeddings()(rows.hidden[layer]).float()
        assert float((bare - alone).square().mean().sqrt()) < 0.03 * float(alone.std())
        few = network.head(some, normed=False)(rows.hidden[layer])
        assert float((few - bare[:, some]).abs().max()) < 0.05 * float(bare.std())
    assert torch.equal(network.head()(rows.hidden[3]), rows.logits)


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 8), (17, 8), (40, 3), (4, 300)])
def test_rows_may_be_ranked_instead(network: NativeNetwork, rows: int, k: int) -> None:
    ids = random_ids(rows, rows, 200)
    wanted = range(rows // 2, rows)
    logits = scores(network, Forward(network.new_sequence(), ids, logits=wanted))[0]
    expected = network.top(logits, k)
    for _ in range(3):  # whichever thread meets which columns
        [answer] = network.run([Forward(network.new_sequence(), ids, logits=wanted, rank=k)])
        assert answer.logits.shape == (0, network.vocabulary)
        assert answer.ranking is not None
        assert answer.ranking.ids == expected.ids
        shares = [torch.tensor(ranking.shares) for ranking in (answer.ranking, expected)]
        assert torch.allclose(*shares, rtol=1e-5, atol=1e-8)


def test_the_lower_of_equal_tokens_ranks_first() -> None:
    model = make("llama")
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        for token in (3, 70, 150, 207):
            head[token] = head[131]
    network = NativeNetwork.of(model, "equals")
    ids = random_ids(40, 5, 200)
    logits = scores(network, Forward(network.new_sequence(), ids))[0]
    [answer] = network.run([Forward(network.new_sequence(), ids, rank=208)])
    assert answer.ranking is not None
    assert answer.ranking.ids == logits.sort(dim=1, descending=True, stable=True).indices.tolist()


def test_one_that_wants_logits_gets_them_beside_one_that_is_ranked() -> None:
    network = native("llama")
    texts = [random_ids(9, seed, 200) for seed in (1, 2, 3)]
    whole = [scores(network, Forward(network.new_sequence(), text))[0] for text in texts]
    mixed = network.run([Forward(network.new_sequence(), t, rank=4 * (i > 0)) for i, t in enumerate(texts)])
    assert all(torch.equal(answer.logits, logits) for answer, logits in zip(mixed, whole, strict=True))
    ranked = network.run([Forward(network.new_sequence(), text, rank=4) for text in texts])
    for answer, logits in zip(ranked, whole, strict=True):
        assert answer.ranking is not None
        assert answer.ranking.ids == network.top(logits, 4).ids


def test_chosen_logits_only() -> None:
    network = native("llama")
    ids = random_ids(40, 9, 200)
    whole = scores(network, Forward(network.new_sequence(), ids))[0]
    some = scores(network, Forward(network.new_sequence(), ids, logits=(39, 4, 17)))[0]
    assert torch.equal(some, whole[[39, 4, 17]])


def test_the_decoder_that_counts_its_time_gives_the_same() -> None:
    import ctypes

    from decodery.models.native import binding

    network = native("llama")
    ids = random_ids(40, 9, 200)
    expected = scores(network, Forward(network.new_sequence(), ids))[0]
    counting = binding.load(build.compiled(build.usable()[0], "-DDECODERY_PROFILE"))
    assert counting.decodery_ready()
    made = NativeNetwork.of(make("llama"), "counting")
    made.library = counting
    spent = (ctypes.c_int64 * 7)()
    assert torch.equal(scores(made, Forward(made.new_sequence(), ids))[0], expected)
    counting.decodery_spent(spent)
    assert all(part > 0 for part in spent)
    counting.decodery_spent(spent)
    assert not any(spent)


def test_an_owned_model_gives_its_weights_up() -> None:
    native("llama")
    model = make("llama")
    expected = reference_logits(model, [1, 2, 3])
    kept = TransformersNetwork(model, "kept").fingerprint()
    linears = [weakref.ref(module.weight) for module in model.modules() if isinstance(module, nn.Linear)]
    network = NativeNetwork.of(model, "owned", owned=True)
    del model
    gc.collect()
    assert linears
    assert not any(weight() is not None for weight in linears)
    assert network.fingerprint() == kept
    ours = scores(network, Forward(network.new_sequence(), [1, 2, 3]))[0]
    assert float((ours - expected).square().mean().sqrt()) < 0.1 * float(expected.std())
    with pytest.raises(ValueError, match="the transformers model of owned was given up when its weights were packed"):
        _ = network.model
    again = make("llama")
    network.complete = lambda: again
    assert network.model is again


def test_a_model_that_does_not_fit_says_why() -> None:
    with pytest.raises(BadSetting, match="native path here: the native path is for bfloat16 on a CPU"):
        network_for(make_model("llama"), "tiny", "native")
    with pytest.raises(BadSetting, match="heads of width 8 are no multiple of 64"):
        network_for(make_model("llama").to(torch.bfloat16), "tiny", "native")
    with pytest.raises(
        BadSetting, match="fast must be auto, exact, integer, packed, native, fused or off, not 'quick'"
    ):
        network_for(make_model("llama"), "tiny", "quick")


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(compiling, "compilers", list)
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))
    build.library.cache_clear()
    try:
        with pytest.raises(build.NotBuilt, match="there is no C compiler"):
            build.library()
        model = make("llama")
        assert network_for(model, "tiny").path == "fused"  # the next best, without an error
    finally:
        build.library.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(compiling, "compilers", lambda: [["false"]])
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))
    with pytest.raises(build.NotBuilt, match="false"):
        build.compiled(build.AVX2)
    assert not list((tmp_path / "native").iterdir())


@pytest.mark.parametrize("vocabulary", [16, 33, 5000])
@pytest.mark.parametrize("k", [1, 8, 20])
def test_the_likeliest_tokens_and_their_probabilities(vocabulary: int, k: int) -> None:
    network = native("llama")
    generator = torch.Generator().manual_seed(vocabulary + k)
    logits = 4 * torch.randn(7, vocabulary, generator=generator)
    logits[3] = logits[3].round()  # many equal ones
    logits[4] = logits[4].sort().values  # each beats all before it
    ids, shares = network.top(logits, k)
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, : min(k, vocabulary)]
    assert ids == order.tolist()
    assert torch.allclose(torch.tensor(shares), logits.softmax(1).gather(1, order), atol=1e-6)
