"""Training of insertion language models: what is dropped, what is asked for, the loss, and the recipe as a whole."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

import decodery
from decodery.evaluation.planning.tasks import SIZES, floor
from decodery.evaluation.planning.words import BEGIN, HOLE, SPECIAL
from decodery.models.forward import Attend, Forward, Rows, Slots
from decodery.training import insertion_language_models as recipe_module
from decodery.training.insertion_language_models import (
    AUTOREGRESSIVE,
    INSERTIONS,
    KINDS,
    MASKED,
    PlanningData,
    PlanningSizes,
    accuracy,
    answers,
    area,
    insertion_metrics,
    make,
    new_network,
    puzzles,
    row,
    rows,
)
from decodery.training.insertion_network import InsertionLlama
from decodery.training.insertions import drop, grow, insertion_loss, joint_costs
from decodery.training.masked_diffusion import Recipe
from decodery.training.masking import collate
from decodery.training.networks import Shape

VOCABULARY = 6
SMALL = PlanningSizes(width=16, layers=1, heads=2)


def _batch(generator: random.Random, count: int, repeats: bool = True):
    """Rows with prompts of 1 to 3 tokens and up to 6 behind them."""
    made = []
    for _ in range(count):
        prompt, length = generator.randint(1, 3), generator.randint(0, 6)
        body = [generator.randrange(VOCABULARY) for _ in range(length)]
        made.append((prompt, [generator.randrange(VOCABULARY) for _ in range(prompt)] + body))
    return collate(made)


def test_what_is_dropped_is_counted_in_its_gap_and_builds_the_text_again():
    """Over 1,000 random drops: the counts sum to K, and what the gaps miss, inserted in some order, is the text."""
    numbers = random.Random(0)
    batch = _batch(numbers, 1000)
    dropped = drop(batch, torch.Generator().manual_seed(0))
    counts = dropped.counts(VOCABULARY)
    assert torch.equal(counts.sum((1, 2)).long(), dropped.count)
    assert bool((counts.sum(2)[~dropped.open] == 0).all()), "only open gaps miss something"
    for place in range(1000):
        whole = batch.tokens[place, : batch.lengths[place]].tolist()
        left = dropped.tokens[place, : dropped.lengths[place]].tolist()
        prompt = int(batch.prompts[place])
        assert left[:prompt] == whole[:prompt], "a prompt is never dropped"
        assert len(left) + int(dropped.count[place]) == len(whole)
        # Between two tokens that are left stands what the gap misses: as a multiset, so some order builds the text.
        assert _built(left, counts[place], whole), (left, whole)


def _built(left, counts, whole) -> bool:
    """Whether a text falls into the tokens that are left, each followed by as many tokens as its gap misses, and those ones."""
    place = 0
    for slot, token in enumerate(left):
        if whole[place] != token:
            return False
        size = int(counts[slot].sum())
        found = torch.zeros(VOCABULARY)
        for other in whole[place + 1 : place + 1 + size]:
            found[other] += 1
        if not torch.equal(found, counts[slot]):
            return False
        place += 1 + size
    return place == len(whole)


def test_how_many_are_dropped_is_uniform_with_both_ends():
    batch = collate([(1, [0, 1, 2, 3, 4])] * 5000)
    dropped = drop(batch, torch.Generator().manual_seed(1))
    counts = torch.bincount(dropped.count, minlength=5)
    assert len(counts) == 5
    # Five standard deviations of a count of 1,000.
    assert float((counts - 1000).abs().max()) < 5 * math.sqrt(5000 * 0.2 * 0.8)
    one = drop(batch, torch.Generator().manual_seed(1), torch.ones(5000, dtype=torch.long))
    gone = torch.bincount(one.cells[2], minlength=5)[1:]
    assert int(gone.sum()) == 5000
    assert float((gone - 1250).abs().max()) < 5 * math.sqrt(5000 * 0.25 * 0.75)


def test_the_loss_of_the_shares_themselves_is_their_entropy():
    batch = _batch(random.Random(1), 200)
    dropped = drop(batch, torch.Generator().manual_seed(2))
    shares = dropped.counts(VOCABULARY) / dropped.count.clamp(min=1)[:, None, None]
    logits = shares.log().clamp(min=torch.finfo(torch.float32).min)
    costs = joint_costs(logits, dropped)
    assert torch.allclose(costs, torch.special.entr(shares).sum((1, 2)), atol=1e-5)
    complete = dropped.count == 0
    assert bool(complete.any())
    assert bool((costs[complete] == 0).all())
    assert bool(costs.isfinite().all())


def test_one_softmax_ranges_over_all_gaps():
    """A constant on one gap changes the loss; with a softmax of each gap by itself it would not."""
    batch = collate([(1, [0, 1, 2])])
    dropped = drop(batch, torch.Generator().manual_seed(0), torch.tensor([1]))
    logits = torch.zeros(1, dropped.tokens.shape[1], VOCABULARY)
    cells = dropped.tokens.shape[1] * VOCABULARY
    assert float(joint_costs(logits, dropped)) == pytest.approx(math.log(cells), abs=1e-5)
    logits[0, int(dropped.cells[1, 0])] += 2.0
    raised = VOCABULARY * math.exp(2.0) + cells - VOCABULARY
    assert float(joint_costs(logits, dropped)) == pytest.approx(math.log(raised) - 2.0, abs=1e-5)


def test_closed_gaps_take_no_part():
    batch = collate([(3, [0, 1, 2, 3]), (1, [0, 1])])
    dropped = drop(batch, torch.Generator().manual_seed(0), torch.tensor([1, 1]))
    logits = torch.randn(2, dropped.tokens.shape[1], VOCABULARY, generator=torch.Generator().manual_seed(0))
    costs = joint_costs(logits, dropped)
    changed = logits.clone()
    changed[~dropped.open] += 100.0
    assert torch.equal(joint_costs(changed, dropped), costs)


def test_the_loss_teaches_the_stop_head_too():
    """Its class is 0 where nothing is missing."""

    class Told:
        def __init__(self, stop):
            self.stop = stop

        def scores(self, tokens, visible):
            assert visible.shape == (len(tokens), 1, 1, tokens.shape[1])
            return torch.zeros(*tokens.shape, VOCABULARY), self.stop.expand(len(tokens), 2)

    complete = collate([(2, [0, 1])] * 3)
    right = insertion_loss(Told(torch.tensor([9.0, -9.0])), complete, torch.Generator())
    wrong = insertion_loss(Told(torch.tensor([-9.0, 9.0])), complete, torch.Generator())
    assert float(right) < 1e-3
    assert float(wrong) == pytest.approx(18.0, abs=1e-3)


@pytest.mark.parametrize(("size", "value"), [("arms-of-3", 0.6356), ("arms-of-4", 0.9399)])
def test_an_ideal_model_does_not_know_which_of_two_equal_words_is_left(size, value):
    answer = SIZES[size].draw(random.Random(0)).answer
    assert floor(answer) == pytest.approx(value, abs=1e-4)
    # With all words different nothing is lost: the entropy of the counts alone.
    distinct = tuple(str(place) for place in range(len(answer)))
    assert floor(distinct) == pytest.approx(_entropy(len(answer)), abs=1e-9)


def _entropy(length: int) -> float:
    """Of what is missing of a text of different words, K ~ U{0..length}: the mean of log K."""
    return sum(math.log(count) for count in range(1, length + 1)) / (length + 1)


def test_the_network_is_written_and_loaded_as_it_is(tmp_path):
    data = PlanningData(("arms-of-3",))
    network = InsertionLlama(Shape(len(data.words), 16, 2, 2), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    recipe_module.write_model(network, INSERTIONS, data, tmp_path)
    again = InsertionLlama.read(tmp_path)
    tokens = torch.tensor([[0, 9, 11, 7, 1, 8]])
    for one, other in zip(network.scores(tokens), again.scores(tokens), strict=True):
        assert torch.allclose(one, other, atol=0.02)
    lm = decodery.load(tmp_path, dtype="float32")
    assert lm.default_method == "insertion-language-models"
    order = [0, 4, 2, 1, 5, 3]  # slots may stand in any order
    forward = Forward(
        lm.network.new_sequence(),
        tokens[0, order].tolist(),
        positions=order,
        attend=Attend.FULL,
        slots=Slots.NOWHERE,
        taps=(1,),
        logits=Rows.NONE,
    )
    [scores] = lm.network.run([forward])
    assert lm.network.insertions is not None
    logits, stop = lm.network.insertions.head(scores.hidden[1])
    expected, ends = again.scores(tokens)
    assert torch.allclose(logits, expected[0, order], atol=1e-3)
    assert torch.allclose(stop, ends[0], atol=1e-3)
    words = data.words
    assert lm.tokenize(f"3 5 {BEGIN} 4 {HOLE}") == [words["3"], words["5"], words[BEGIN], words["4"], words[HOLE]]


class Counting:
    """Inserts the word after the number of slots into the gap of the first slot behind the prompt, until there are three."""

    def scores(self, tokens):
        logits = torch.zeros(*tokens.shape, 10)
        length = tokens.shape[1]
        logits[:, 0] = 50.0
        logits[:, 2, length] = 5.0
        logits[:, -1, 9] = 6.0
        return logits, torch.tensor([[1.0, 0.0] if length == 6 else [0.0, 1.0]]).expand(len(tokens), 2)


def test_growing_is_greedy_and_ends_by_the_stop_head():
    assert grow(Counting(), [[0, 1, 2]], 8, 0.5, [9]) == [[5, 4, 3]]
    assert grow(Counting(), [[0, 1, 2], [0, 1, 3]], 2, 0.5, [9]) == [[4, 3], [4, 3]]
    assert grow(Counting(), [[0, 1, 2]], 4, 0.9, [9]) == [[6, 5, 4, 3]], "it is 0.73 sure at most"
    assert grow(Counting(), [[0, 1, 2]], 2, 0.5, [], rightmost=True) == [[9, 9]]


def test_rows_of_each_kind():
    puzzle = SIZES["arms-of-3"].draw(random.Random(0))
    words = PlanningData(("arms-of-3",)).words
    length, ids = row(puzzle, words, INSERTIONS)
    assert (length, len(ids)) == (len(puzzle.prompt) + 2, len(puzzle.prompt) + 2 + len(puzzle.answer))
    assert (ids[0], ids[length - 1]) == (words["<class>"], words[BEGIN])
    assert row(puzzle, words, AUTOREGRESSIVE)[1] == [*ids, words["<end>"]]
    assert row(puzzle, words, MASKED, 6)[1] == [*ids, *[words["<end>"]] * 3]


def test_sizes_join_one_after_the_other_and_pools_are_the_same_again():
    data = PlanningData(("arms-of-3", "arms-of-4"), pools=2)
    source = rows(data, INSERTIONS, 0)
    assert {len(tokens) for _, tokens in source(1)} == {20}
    second = [len(tokens) for _, tokens in source(2)]
    assert set(second) == {20, 28}
    assert second.count(28) / len(second) == pytest.approx(0.6, abs=0.1)
    assert source(2) == source(2)
    assert source(2) != source(3)


@pytest.mark.parametrize("sizes", [("arms-of-9",), (), ("easy", "hard")])
def test_sizes_that_do_not_go_are_refused(sizes):
    with pytest.raises(decodery.errors.BadInput):
        PlanningData(sizes)


def test_the_area_under_the_curve():
    assert area(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert area(torch.tensor([0.0]), torch.tensor([1.0])) == 0.0
    assert area(torch.tensor([1.0, 0.0]), torch.tensor([1.0])) == 0.25


def test_answers_of_each_kind_are_read_up_to_the_end():
    data = PlanningData(("arms-of-3", "arms-of-4"))
    asked = [*puzzles("arms-of-3", 2), *puzzles("arms-of-4", 2)]
    for kind in KINDS:
        network = new_network(PlanningSizes(kind, 16, 1, 2), len(data.words))
        told = answers(network, kind, asked, data)
        assert len(told) == 4
        assert not {token for ids in told for token in ids} & set(range(len(SPECIAL)))
    assert set(accuracy(network, kind, data, 4)) == {"arms-of-3", "arms-of-4"}


def test_the_measures_of_an_untrained_model_are_those_of_ignorance():
    data = PlanningData(("arms-of-3",))
    found = insertion_metrics(new_network(SMALL, len(data.words)), data, 200)["arms-of-3"]
    assert found["ideal"] == pytest.approx(0.6356, abs=1e-4)
    assert found["cross_entropy"] > 2.5
    assert 0 < found["standard_error"] < 0.3
    assert found["stop_auc"] == pytest.approx(0.5, abs=0.25)


def test_other_tasks_are_trained_and_measured_alike():
    for size, ideal in (("zebra-2", _entropy(4)), ("hard", None)):
        data = PlanningData((size,))
        found = insertion_metrics(new_network(SMALL, len(data.words)), data, 4)[size]
        assert found["ideal"] == (None if ideal is None else pytest.approx(ideal, abs=1e-4))
        assert len(rows(data, INSERTIONS, 0)(0)) == 640


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_learns_goes_on_and_writes_a_model(kind, tmp_path):
    data = PlanningData(("arms-of-3",))
    sizes = PlanningSizes(kind, 16, 1, 2)
    recipe = Recipe(steps=60, batch_tokens=320, rate=5e-3, warmup=5, masks=recipe_module.MASKS[kind])
    card = make(recipe, sizes, data, tmp_path / "work", tmp_path / "model", samples=8, watch_samples=4)
    log = card["log"]
    assert log[-1]["loss"] < log[0]["loss"]
    assert "exact arms-of-3" in log[-1]
    assert ("held_out" in card["metrics"]) == (kind == INSERTIONS)
    assert json.loads((tmp_path / "model" / "card.json").read_text())["sizes"]["kind"] == kind
    again = make(recipe, sizes, data, tmp_path / "work", tmp_path / "model", samples=8, watch_samples=4)
    assert again["log"] == log, "what is finished is not trained again"
    lm = decodery.load(tmp_path / "model")
    prompt = " ".join(puzzles("arms-of-3", 1)[0].prompt)
    assert len(lm.generate(prompt, max_new_tokens=4, seed=0).token_ids) <= 4


def test_another_stage_goes_on_with_a_model(tmp_path):
    data, recipe = PlanningData(("arms-of-3",)), Recipe(steps=2, batch_tokens=64, rate=1e-2, warmup=1)
    make(recipe, SMALL, data, tmp_path / "work", tmp_path / "first", samples=2, watch_samples=2)
    still = Recipe(steps=1, batch_tokens=64, rate=0.0, warmup=1)
    folders = (tmp_path / "work 2", tmp_path / "second")
    card = make(still, SMALL, data, *folders, start=tmp_path / "first", samples=2, watch_samples=2)
    first, second = (InsertionLlama.read(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items()), "a rate of 0 changes nothing"
    assert [stage["recipe"]["steps"] for stage in card["stages"]] == [2]
    assert card["recipe"]["steps"] == 1


def test_the_command_line(tmp_path, capsys):
    options = "--steps 2 --width 16 --layers 1 --heads 2 --batch-tokens 64 --sizes arms-of-3 --rate 0.01"
    places = ["--folder", str(tmp_path / "work"), "--artifact", str(tmp_path / "stars")]
    recipe_module.main([*places, *options.split()])
    card = json.loads((tmp_path / "stars" / "card.json").read_text())
    assert card["command"] == (
        "decodery train insertion-language-models --folder work --artifact stars --steps 2 --batch-tokens 64 --rate 0.01 "
        "--width 16 --layers 1 --heads 2 --sizes arms-of-3"
    )
    assert "exact" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        recipe_module.main([*places, "--sizes", "arms-of-9"])
    assert ended.value.code == 2
