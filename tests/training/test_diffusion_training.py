"""The recipe of masked diffusion: what is hidden, what is learned, restarts, files, adaptation, and the shipped list model."""

import itertools
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from decodery.errors import BadInput
from decodery.training.adaptation import AdaptedModel, reserved_token
from decodery.training.masked_diffusion import Recipe, Trainer, main
from decodery.training.masking import JITTER, Batch, batches, bound, collate, fill, hide, loss, sureness
from decodery.training.networks import Shape, SmallLlama

VOCABULARY, MASK = 12, 0
SHAPE = Shape(VOCABULARY, width=32, layers=2, heads=2, theta=500.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(pool):
    """Eight tokens twice: the second half is a copy."""
    drawn = torch.randint(1, VOCABULARY, (64, 4), generator=generator(pool)).tolist()
    return [(4, [*row, *row]) for row in drawn]


# Hiding


@pytest.mark.parametrize("masks", ["count", "suffix", "late", "independent"])
def test_prompts_and_fillings_are_never_hidden(masks):
    batch = collate([(3, [1] * 8), (0, [1] * 5), (7, [1] * 8)])
    for seed in range(50):
        hidden, _ = hide(batch, masks, generator(seed), torch.full(batch.tokens.shape, 0.5))
        assert not (hidden & ~batch.canvas).any()
        assert masks == "independent" or hidden.any(dim=1).all()
    assert batch.canvas.sum(dim=1).tolist() == [5, 5, 1]


def test_counts_are_uniform_and_places_too():
    batch = collate([(2, [1] * 8)] * 4000)
    hidden, weights = hide(batch, "count", generator())
    counts = hidden.sum(dim=1)
    assert set(counts.tolist()) == set(range(1, 7))
    for count in range(1, 7):
        assert abs((counts == count).float().mean() - 1 / 6) < 0.03
    shares = hidden.float().mean(dim=0)[2:]
    assert (shares - 3.5 / 6).abs().max() < 0.04
    assert float((weights * hidden).sum()) == pytest.approx(1, abs=1e-4), "each row weighs the same whatever is hidden"


def test_half_of_the_rows_hide_a_suffix_as_well():
    length = 6
    batch = collate([(2, [1] * (2 + length))] * 8000)
    hidden, weights = hide(batch, "suffix", generator())
    by_count = (length + 1) / 2 / length
    expected = [by_count + (1 - by_count) * (place + 1) / length / 2 for place in range(length)]
    assert hidden.float().mean(dim=0)[2:].tolist() == pytest.approx(expected, abs=0.025)  # four and a half deviations
    assert bool((weights == 1).all())
    # An answer of three tokens with nothing behind it, by enumeration: one row of 47, where counts alone give one of 120.
    behind, law = {3, 4, 5}, 0.0
    for count in range(1, length + 1):
        for drawn in itertools.combinations(range(length), count):
            share = 1 / length / math.comb(length, count)
            law += share / 2 * (set(drawn) == behind)
            law += sum(share / 2 / length * ({*drawn, *range(cut, length)} == behind) for cut in range(length))
    written = (hidden[:, 2:] == torch.tensor([False] * 3 + [True] * 3)).all(dim=1).float().mean()
    assert float(written) == pytest.approx(law, abs=0.0065)  # four deviations


def test_half_of_the_rows_hide_the_few_tokens_that_the_network_is_least_sure_of():
    length = 6
    batch = collate([(2, [1] * (2 + length))] * 8000)
    sure = torch.tensor([0.0, 0.0, 0.9, 0.5, 0.7, 0.1, 0.3, 1.1]).expand(8000, -1)  # steps wider than the jitter
    assert 0.2 > JITTER > 0
    hidden, weights = hide(batch, "late", generator(), sure)
    few = [math.log(count + 1, length) - math.log(count, length) for count in range(1, length)] + [0]
    counts = [1 / length / 2 + share / 2 for share in few]
    found = hidden.sum(dim=1).bincount(minlength=length + 1)[1:] / 8000
    assert found.tolist() == pytest.approx(counts, abs=0.022)  # four deviations
    patterns = {row: place for place, row in enumerate([(5,), (5, 6), (5, 6, 3), (5, 6, 3, 4), (5, 6, 3, 4, 2)])}
    for pattern, place in patterns.items():
        law = few[place] / 2 + 1 / length / math.comb(length, place + 1) / 2
        share = (hidden.nonzero(as_tuple=True)[0].bincount() == place + 1) & hidden[:, list(pattern)].all(dim=1)
        assert float(share.float().mean()) == pytest.approx(law, abs=0.022)
    sums = (weights * hidden).sum(dim=1)
    assert sums.tolist() == pytest.approx([1 / 8000] * 8000), "each row weighs the same"


def test_positions_of_which_the_network_is_as_sure_come_in_any_order():
    batch = collate([(2, [1] * 6)] * 4000)
    hidden, _ = hide(batch, "late", generator(), torch.full((4000, 6), 0.5))
    alone = hidden[hidden.sum(dim=1) == 1].float().mean(dim=0)[2:]
    assert alone.tolist() == pytest.approx([0.25] * 4, abs=0.05)


def test_late_masks_need_to_know_how_sure_the_network_is():
    with pytest.raises(ValueError, match="how sure"):
        hide(collate(rows(0)), "late", generator())


def test_sureness_is_that_of_wholly_hidden_canvases():
    network, batch = SmallLlama(SHAPE, seed=1).eval(), collate(rows(0)[:8])
    others = Batch(torch.where(batch.canvas, 3, batch.tokens), batch.prompts, batch.lengths)
    found = sureness(network, batch, MASK)
    torch.testing.assert_close(found, sureness(network, others, MASK))
    hidden = batch.tokens.clone()
    hidden[:, 4:] = MASK
    torch.testing.assert_close(found, network.head(network(hidden)).softmax(dim=-1).amax(dim=-1).detach())


def test_independent_masks_weigh_the_same_on_average():
    batch = collate([(0, [1] * 16)] * 64)
    sums = [(lambda h, w: float((h * w).sum()))(*hide(batch, "independent", generator(seed))) for seed in range(300)]
    error = torch.tensor(sums).std() / len(sums) ** 0.5
    assert abs(sum(sums) / len(sums) - 1) < 4 * float(error) < 0.1


class Uniform:
    """Gives every token the same probability."""

    shift = False

    def __call__(self, tokens, visible=None, causal=False):
        return torch.zeros(*tokens.shape, 1)

    def head(self, states):
        return torch.zeros(*states.shape[:-1], VOCABULARY)


def test_the_bound_of_a_uniform_law_is_the_logarithm_of_the_vocabulary():
    assert bound(Uniform(), rows(0), MASK) == pytest.approx(math.log(VOCABULARY), rel=1e-5)
    for masks in ("count", "late", "next"):
        value = loss(Uniform(), collate(rows(0)), masks, MASK, generator())
        assert float(value) == pytest.approx(math.log(VOCABULARY), rel=1e-5)


def test_batches_keep_rows_of_a_length_together_and_lose_none():
    source = lambda pool: [(1, [1 + i % 3] * (4 + 4 * (i % 3))) for i in range(50)]  # noqa: E731
    found = batches(source, 40, 0, 0)
    assert all(batch.visible is None for batch in found)
    assert all(batch.tokens.numel() <= 40 for batch in found)
    assert sum(len(batch.tokens) for batch in found) == 50
    again = batches(source, 40, 0, 0)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))


def test_fillings_of_shorter_rows_change_nothing():
    network = SmallLlama(SHAPE).eval()
    short, long = [1, 2, 3], [4, 5, 6, 7, 8]
    together = collate([(1, short), (1, long)])
    assert together.visible is not None
    states = network(together.tokens, together.visible)
    alone = network(torch.tensor([short]))
    torch.testing.assert_close(states[0, :3], alone[0], atol=1e-5, rtol=1e-5)


# The network


def test_every_position_sees_every_other_one_unless_causal():
    network = SmallLlama(SHAPE).eval()
    first, second = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 4]])
    assert not torch.allclose(network(first)[0, 0], network(second)[0, 0])
    torch.testing.assert_close(network(first, causal=True)[0, :2], network(second, causal=True)[0, :2])


def test_the_file_is_an_ordinary_llama(tmp_path):
    network = SmallLlama(SHAPE, seed=3).eval()
    network.write(tmp_path, torch.float32, masked_diffusion={"mask_token_id": MASK})
    tokens = torch.tensor([[1, 5, 3, 9, 2]])
    llama = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(network.head(network(tokens, causal=True)), llama(tokens).logits, atol=1e-5, rtol=1e-5)
    everything = torch.zeros(1, 1, 5, 5)
    full = llama(tokens, attention_mask=everything).logits
    torch.testing.assert_close(network.head(network(tokens)), full, atol=1e-5, rtol=1e-5)
    assert llama.config.masked_diffusion == {"mask_token_id": MASK}
    again = SmallLlama.read(tmp_path)
    torch.testing.assert_close(again(tokens), network(tokens))


def test_the_twins_loss_is_that_of_transformers(tmp_path):
    network = SmallLlama(SHAPE, seed=3).eval()
    network.write(tmp_path, torch.float32)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    batch = collate([(0, row) for _, row in rows(0)[:8]])
    expected = llama(batch.tokens, labels=batch.tokens).loss
    torch.testing.assert_close(loss(network, batch, "next", MASK, generator()), expected, atol=1e-5, rtol=1e-5)


# Training


def trainer(folder, steps, **more):
    recipe = Recipe(steps=steps, batch_tokens=128 if steps < 100 else 512, rate=5e-3, warmup=10, **more)
    return Trainer(SmallLlama(SHAPE), rows, recipe, MASK, folder, checkpoint_steps=10)


def test_it_learns_to_copy_and_fills_it_in(tmp_path):
    training = trainer(tmp_path, 300)
    log = training.train()
    assert log[-1]["loss"] < 0.1 < 1.5 < log[0]["loss"]
    prompts = [row[:4] for _, row in rows(999)]
    network = training.finished()
    for per_step, block in ((1, None), (2, None), (4, 2), (1, 2)):
        filled = fill(network, prompts, 4, MASK, per_step=per_step, block=block)
        assert sum(a == b for a, b in zip(filled, prompts, strict=True)) >= 60
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == log


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_restart_ends_in_the_same_weights(tmp_path, average):
    whole = trainer(tmp_path / "whole", 30, average=average)
    whole.train()
    stopped = trainer(tmp_path / "parts", 30, average=average)

    class Interrupted(Exception):
        pass

    def stop(step, steps, entry):
        if step == 17:
            raise Interrupted

    stopped.progress = stop
    with pytest.raises(Interrupted):
        stopped.train()
    resumed = trainer(tmp_path / "parts", 30, average=average)
    log = resumed.train()
    assert [entry["step"] for entry in log] == [10, 20, 30]
    for name, weight in whole.finished().state_dict().items():
        torch.testing.assert_close(resumed.finished().state_dict()[name], weight, atol=0, rtol=0)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    trainer(tmp_path, 10).train()
    with pytest.raises(BadInput, match="another recipe"):
        trainer(tmp_path, 20).train()


def test_the_rate_warms_up_and_falls():
    recipe = Recipe(steps=100, warmup=10, rate=1.0, last_rate=0.1)
    rates = [recipe.rate_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    twice = Recipe(steps=150, first_steps=100, warmup=10, rate=1.0, last_rate=0.1)
    assert [twice.rate_at(step) for step in range(100)] == rates[:100], "a run can be made longer when it is over"
    assert twice.rate_at(110) == 1.0
    assert twice.rate_at(150) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="masks"):
        Recipe(masks="all")


def test_watching_sees_the_mean_of_the_weights_and_leaves_the_training_alone(tmp_path):
    seen = {}

    def watch(network, step):
        seen[step] = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        return {"seen": 1.0}

    training = trainer(tmp_path, 20, average=0.9)
    training.watch, training.watch_steps = watch, 20
    log = training.train()
    assert log[-1]["seen"] == 1.0
    name = "model.norm.weight"
    assert not torch.equal(training.network.state_dict()[name], seen[20][name])
    torch.testing.assert_close(training.finished().state_dict()[name], seen[20][name])


# The plain decoder


def test_filling_writes_what_was_asked_per_step_and_no_mask():
    network = SmallLlama(SHAPE).eval()
    order = []
    filled = fill(network, [[1, 2], [3, 4, 5]], 7, MASK, per_step=3, banned=[1], order=order)
    assert [int(step.sum(dim=1)[0]) for step in order] == [3, 3, 1]
    assert torch.stack(order).sum(dim=0).eq(1).all()
    assert all(token not in (MASK, 1) for row in filled for token in row)
    blocks = []
    fill(network, [[1, 2]], 6, MASK, block=2, order=blocks)
    assert [sorted(step[0].nonzero()[:, 0].tolist())[0] // 2 for step in blocks] == [0, 0, 1, 1, 2, 2]


# Adaptation


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    return LlamaForCausalLM(config).eval()


def test_an_adapted_model_is_the_causal_one_until_it_is_opened():
    model = llama()
    tokens = torch.tensor([[1, 5, 3, 9, 2]])
    expected = model(tokens).logits
    adapted = AdaptedModel(model, MASK, rank=4).eval()
    torch.testing.assert_close(adapted.head(adapted(tokens, causal=True)), expected, atol=1e-5, rtol=1e-5)
    changed = torch.tensor([[1, 5, 3, 9, 4]])
    assert not torch.allclose(adapted(tokens)[0, 0], adapted(changed)[0, 0]), "everything is seen"
    adapted.anneal(0, 1000)
    partly = (adapted(tokens)[0, 0] - adapted(changed)[0, 0]).abs().max()
    assert partly < 1e-5, "one thousandth of the future is hardly anything"
    adapted.anneal(999, 1000)
    assert not torch.allclose(adapted(tokens)[0, 0], adapted(changed)[0, 0])


def test_only_low_ranks_and_the_masks_row_are_trained_and_all_is_merged(tmp_path):
    model = llama()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = AdaptedModel(model, MASK, rank=4)
    recipe = Recipe(steps=20, batch_tokens=128, rate=2e-2, warmup=5, anneal=10)
    training = Trainer(adapted, rows, recipe, MASK, tmp_path / "work", checkpoint_steps=10)
    assert all("down" in name or "up" in name or name == "mask_row" for name in training.weights)
    log = training.train()
    assert log[-1]["loss"] < log[0]["loss"]
    state = adapted.state_dict()
    frozen = before["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(state["model.model.layers.0.self_attn.q_proj.base.weight"], frozen, atol=0, rtol=0)
    tokens = torch.tensor([[1, 5, MASK, 9, 2]])
    expected = adapted.eval().head(adapted(tokens))
    adapted.write(tmp_path / "model", torch.float32, masked_diffusion={"mask_token_id": MASK, "shift": True})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert merged.config.masked_diffusion["shift"]
    found = merged(tokens, attention_mask=torch.zeros(1, 1, 5, 5)).logits
    torch.testing.assert_close(found[:, :, 1:], expected[:, :, 1:].detach(), atol=1e-4, rtol=1e-4)


def test_a_shifted_loss_reads_the_row_before():
    adapted = AdaptedModel(llama(), MASK).eval()
    tokens = torch.tensor([[1, 5, 3, 9, 2]])
    batch = Batch(tokens, torch.tensor([4]), torch.tensor([5]))  # only the last position can be hidden
    value = loss(adapted, batch, "count", MASK, generator())
    states = adapted(torch.tensor([[1, 5, 3, 9, MASK]]))
    expected = torch.nn.functional.cross_entropy(adapted.head(states[:, 3]), tokens[:, 4])
    torch.testing.assert_close(value, expected)


def test_the_command_trains_a_model_that_loads(tmp_path):
    import decodery
    from decodery.evaluation.parallelbench.tasks import make_samples
    from decodery.evaluation.parallelbench.words import write_tokenizer

    write_tokenizer(tmp_path / "words")
    lines = [{"prompt": s.prompt, "answer": s.answer} for s in make_samples("copy", 40)] + [{"text": "A B C D E"}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--data", data, "--tokenizer", tmp_path / "words", "--folder", tmp_path / "work", "--width", 16]
    arguments += ["--artifact", tmp_path / "model", "--layers", 1, "--heads", 1, "--canvas", 8, "--steps", 3]
    main([str(argument) for argument in [*arguments, "--device", "cpu"]])
    lm = decodery.load(str(tmp_path / "model"), dtype="float32")
    assert lm.diffusion.canvas == 8
    reply = lm.generate("copy : A B =", max_new_tokens=8)
    assert len(reply.token_ids) >= 1
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["recipe"]["steps"] == 3


def test_a_reserved_token_is_found_or_refused(tmp_path):
    from transformers import AutoTokenizer

    from decodery.evaluation.parallelbench.words import write_tokenizer

    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert reserved_token(tokenizer) == 0
    tokenizer.mask_token = None
    assert tokenizer.convert_ids_to_tokens(reserved_token(tokenizer)).startswith("<")
