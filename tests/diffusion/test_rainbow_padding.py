"""Rainbow padding: exact targets, reading of canvases, the data of the arms, and their diagnostics on networks of known law."""

import itertools
import math

import pytest
import torch

from decodery.diffusion.padding import truncate
from decodery.evaluation.parallelbench import arithmetic
from decodery.evaluation.parallelbench.words import END, MASK, PADS, decode, encode, vocabulary
from decodery.training import rainbow_padding as recipe
from decodery.training.masking import collate, hide
from decodery.training.rainbow_padding import K, complete, target

EOS, PAD = 9, (20, 21, 22, 23, 24, 25, 26)


# Targets


def test_exact_sequences():
    assert target([], 4, EOS, PAD) == [EOS, 20, 21, 22]
    assert target([1, 2, 3], 4, EOS, PAD) == [1, 2, 3, EOS], "no room for pads"
    assert target([1], 12, EOS, PAD) == [1, EOS, 20, 21, 22, 23, 24, 25, 26, 20, 21, 22], "the cycle goes on and is cut"
    assert target([1, 2], 6, EOS, PAD) == [1, 2, EOS, 20, 21, 22], "the cycle is cut"
    assert target([1], 5, EOS) == [1, EOS, EOS, EOS, EOS], "no pads: end tokens"
    assert target([1], 5, EOS, PAD[:1]) == [1, EOS, 20, 20, 20], "K = 1: one end token and one kind of pad"
    assert K == len(PAD) == len(PADS)


def test_the_cycle_hangs_on_the_end_token_and_not_on_the_position():
    for length in range(1, 30):
        row = target(list(range(100, 100 + length)), 40, EOS, PAD)
        assert len(row) == 40
        assert row.count(EOS) == 1
        end = row.index(EOS)
        assert end == length
        assert [PAD.index(token) for token in row[end + 1 :]] == [j % 7 for j in range(40 - end - 1)]


@pytest.mark.parametrize(
    ("answer", "length", "pads"),
    [([1, 2], 2, PAD), ([1], 5, (20, 20)), ([1], 5, (EOS, 20)), ([20], 5, PAD), ([EOS], 5, ())],
)
def test_what_cannot_be_a_target_is_refused(answer, length, pads):
    with pytest.raises(ValueError, match=r"fit|differ"):
        target(answer, length, EOS, pads)


# Reading


def test_nothing_behind_the_first_end_token_is_read_and_no_pad_ever():
    reading = truncate([1, 2, EOS, 20, 3, EOS, 4], {EOS}, PAD)
    assert (reading.tokens, reading.end is None, reading.stray) == ([1, 2], False, 0)
    reading = truncate([1, 21, 2, EOS, 20], {EOS}, PAD)
    assert (reading.tokens, reading.end is None, reading.stray) == ([1, 2], False, 1)
    reading = truncate([1, 2, 20, 3, 21], {EOS}, PAD)
    assert (reading.tokens, reading.end is None) == ([1, 2], True)
    assert truncate([1, 2], {EOS}, PAD).tokens == [1, 2]
    assert truncate([], {EOS}, PAD).end is None
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        canvas = torch.randint(5, 27, (20,), generator=generator).tolist()
        tokens = truncate(canvas, {EOS}, PAD).tokens
        assert not {EOS, *PAD} & set(tokens)
        if EOS in canvas:
            assert len(tokens) <= canvas.index(EOS)


def test_reading_undoes_the_target_and_an_early_stop_writes_what_was_to_come():
    for length in range(8):
        answer = list(range(100, 100 + length))
        row = target(answer, 12, EOS, PAD)
        assert truncate(row, {EOS}, PAD).tokens == answer
        unfinished = [*row[: length + 1], *([0] * (11 - length))]
        assert complete(unfinished, EOS, PAD) == row
    with pytest.raises(ValueError, match="not in list"):
        complete([1, 2], EOS, PAD)


# The data of the arms


@pytest.mark.parametrize("names", [(), PADS, PADS[:1]])
def test_both_arms_have_the_same_answers_and_differ_in_padding_alone(names):
    words = vocabulary()
    text = list(words)
    plain, padded = recipe.rows(3, ())(0), recipe.rows(3, names)(0)
    pads = [words[name] for name in names]
    for (prompt, tokens), (same, other) in zip(plain, padded, strict=True):
        assert prompt == same
        answers = [truncate(row[prompt:], {words[END]}, pads).tokens for row in (tokens, other)]
        assert answers[0] == answers[1]
        assert len(tokens) == len(other)
        assert any(line.startswith("answer ") for line in decode(answers[0], text).splitlines())
    assert {len(tokens) - prompt for prompt, tokens in plain} == set(recipe.CANVASES)


def test_answers_are_right_and_their_length_is_open():
    words, generator = vocabulary(), recipe.random.Random(1)
    problem = arithmetic.draw_word_problem(recipe.STEPS, generator)
    drawn = [recipe.draw_answer(problem, 47, generator) for _ in range(4000)]
    assert all(recipe.is_right(problem, text) for text in drawn)
    lengths = [len(encode(text, words)) for text in drawn]
    full = 6 * recipe.STEPS + 2
    assert set(lengths) == {2, *range(full, full + len(recipe.BREAKS))}
    terse = sum("=" not in text for text in drawn) / len(drawn)
    assert abs(terse - recipe.TERSE) < 0.03  # more than four deviations
    remark = encode(" ".join(recipe.REMARK), words)
    for text in drawn:
        behind = encode(text, words)[full:]
        assert behind == remark[: len(behind)], "each position behind an answer has one possible word"
    for room in (24, full, full + 2):
        assert max(len(encode(recipe.draw_answer(problem, room, generator), words)) for _ in range(50)) <= room


def test_behind_every_answer_no_pad_is_likelier_than_two_in_k():
    law = {2: recipe.TERSE}
    for often, parts in enumerate(recipe.BREAKS):
        law[6 * recipe.STEPS + 2 + often] = (1 - recipe.TERSE) * parts / sum(recipe.BREAKS)
    assert sum(law.values()) == pytest.approx(1)
    assert len(recipe.BREAKS) == len(recipe.REMARK) + 1
    for place in range(max(law) + 1, 64):
        shares = [0.0] * K
        for length, share in law.items():
            shares[PAD.index(target([1] * length, 64, EOS, PAD)[place])] += share
        assert sum(shares) == pytest.approx(1)
        assert max(shares) <= 1.75 / K + 1e-9


def test_an_answer_is_read_at_its_first_answer_line():
    problem = arithmetic.draw_word_problem(2, recipe.random.Random(1))
    right, wrong = problem.result, (problem.result + 1) % 20
    assert recipe.is_right(problem, f"answer {right}")
    assert recipe.is_right(problem, problem.solution() + "\nthe old cat")
    for text in ("", "the old cat", f"answer {wrong}", f"answer {wrong}\nanswer {right}", f"answer {right} the"):
        assert not recipe.is_right(problem, text)


def test_end_token_and_pads_may_be_hidden_and_count():
    words = vocabulary()
    batch = collate(recipe.rows(0, PADS)(0)[:256])
    hidden, weights = hide(batch, "count", torch.Generator().manual_seed(0))
    for name in (END, *PADS):
        chosen = hidden & (batch.tokens == words[name])
        assert chosen.any()
        assert (weights[chosen] > 0).all()


# Diagnostics, on a network whose law is known


class Known:
    """A network that gives every position the same law, whatever it sees."""

    shift = False

    def __init__(self, favours):
        words = vocabulary()
        self.scores = torch.full((len(words),), -20.0)
        for name, score in favours.items():
            self.scores[words[name]] = score

    def __call__(self, tokens, visible=None, causal=False):
        return torch.zeros(*tokens.shape, 1)

    def head(self, states):
        return self.scores.expand(*states.shape[:-1], -1).clone()


def test_diagnostics_of_a_network_that_knows_only_the_end():
    network = Known({END: 0.0})
    asked = recipe.questions(3, 0)
    found = recipe.behaviour(network, [], asked, 8)
    assert (found.accuracy, found.length, found.early_padding, found.no_end) == (0, 0, 1, 0)
    assert recipe.first_step(network, [], asked, 8)["end"] == pytest.approx([1.0] * 8, abs=1e-4)
    assert recipe.cascade(network, asked, 64, reach=2) == pytest.approx({1: 1.0, 2: 1.0}, abs=1e-4)


def test_diagnostics_of_a_network_that_knows_the_pads_alike():
    words = vocabulary()
    network, asked = Known(dict.fromkeys(PADS, 0.0)), recipe.questions(3, 0)
    pads = [words[pad] for pad in PADS]
    profile = recipe.first_step(network, pads, asked, 8)
    assert profile["pad"] == pytest.approx([1 / 7] * 8, abs=1e-4)
    assert profile["end"] == pytest.approx([0.0] * 8, abs=1e-4)
    found = recipe.behaviour(network, pads, asked, 8)
    assert (found.no_end, found.length) == (1, 0)
    assert recipe.pad_loss(network, recipe.rows(0, PADS), pads) == pytest.approx(math.log(7), abs=1e-4)


@pytest.mark.parametrize("shown", [0, 1, 3])
def test_so_many_pads_are_visible_as_are_to_be_and_the_answer_is_not(shown):
    words = vocabulary()
    pads = [words[pad] for pad in PADS]
    seen: list[list[int]] = []

    class Watched(Known):
        def __call__(self, tokens, visible=None, causal=False):
            seen.extend(tokens.tolist())
            return super().__call__(tokens, visible, causal)

    recipe.pad_loss(Watched(dict.fromkeys(PADS, 0.0)), recipe.rows(0, PADS), pads, shown=shown)
    assert len(seen) == 64
    assert {sum(token in pads for token in row) for row in seen} == {shown}
    assert all(words[END] not in row for row in seen)


class Ordered:
    """A network that writes one canvas, each word with its own confidence: a word is filled the earlier the surer it is."""

    shift = False

    def __init__(self, text, confidences, prompt=2):
        words = vocabulary()
        self.laws = torch.full((len(text), len(words)), 1e-6)
        for offset, (name, confidence) in enumerate(zip(text, confidences, strict=True)):
            self.laws[offset, words[name]] = confidence
            self.laws[offset, words["is"]] += 0.99 - confidence
        self.prompt = prompt

    def __call__(self, tokens, visible=None, causal=False):
        return (torch.arange(tokens.shape[1]).expand(tokens.shape) - self.prompt).clamp_min(0)[..., None].float()

    def head(self, states):
        return self.laws.log()[states[..., 0].long()]


def test_early_padding_is_what_the_first_half_of_the_steps_writes(monkeypatch):
    monkeypatch.setattr(recipe, "_prompts", lambda problems: [[1, 2] for _ in problems])
    asked, words = recipe.questions(2, 0), vocabulary()
    pads = [words[pad] for pad in PADS]
    text = ["the", "cat", "the", "cat", END, *PADS[:3]]
    for confidences, share in (
        ([0.9] * 4 + [0.6] * 4, 0.0),
        ([0.6] * 4 + [0.9] * 4, 1.0),
        ([0.9, 0.9, 0.9, 0.6, 0.9, 0.6, 0.6, 0.6], 0.25),
        ([0.9, 0.9, 0.6, 0.6, 0.6, 0.9, 0.6, 0.9], 0.5),
    ):
        found = recipe.behaviour(Ordered(text, confidences), pads, asked, 8)
        assert found.early_padding == share
        assert (found.length, found.no_end, found.stray) == (4, 0, 0)
    # In blocks it is written where it stands, however sure of it the network is.
    assert recipe.behaviour(Ordered(text, [0.6] * 4 + [0.9] * 4), pads, asked, 8, blocks=2).early_padding == 0
    # A pad that an arm does not have is no padding of it.
    assert recipe.behaviour(Ordered(["the"] * 4 + [END] * 4, [0.6] * 4 + [0.9] * 4), [], asked, 8).early_padding == 1
    strayed = recipe.behaviour(Ordered(["the", PADS[0], "cat", END, *["the"] * 4], [0.9] * 8), pads, asked, 8)
    assert (strayed.stray, strayed.length, strayed.early_padding) == (1, 2, 0.5)


def test_accuracy_is_the_share_of_right_answers(monkeypatch):
    monkeypatch.setattr(recipe, "_prompts", lambda problems: [[1, 2] for _ in problems])
    [one] = recipe.questions(1, 0)
    other = next(problem for problem in recipe.questions(9, 1) if problem.result != one.result)
    text = ["answer", str(one.result), END, END]
    found = recipe.behaviour(Ordered(text, [0.9] * 4), [], [one, other, one, one], 4)
    assert (found.accuracy, found.length, found.no_end) == (0.75, 2, 0)


def test_one_visible_pad_or_end_fixes_all_pads_behind_it_only_where_they_have_an_order():
    """What makes the cycle free to predict, and its absence cost ln K: of all targets that agree with one visible token of the
    padding, how many continue differently."""
    rows = [target(list(range(100, 100 + m)), 24, EOS, PAD) for m in range(20)]
    for place in range(4, 24):
        for token in (EOS, *PAD):
            behind = {tuple(row[place:]) for row in rows if row[place] == token}
            assert len(behind) <= 1
    words = vocabulary()
    pads = [words[pad] for pad in PADS]
    drawn = recipe.without_order(recipe.rows(0, PADS), pads, 0)
    assert drawn(0) == drawn(0), "restarts see the same rows"
    followers = torch.zeros(7, 7)
    for (_, tokens), (_, before) in zip(drawn(0)[:400], recipe.rows(0, PADS)(0)[:400], strict=True):
        assert [t in pads for t in tokens] == [t in pads for t in before]
        for first, second in itertools.pairwise(tokens):
            if first in pads and second in pads:
                followers[pads.index(first), pads.index(second)] += 1
    shares = followers / followers.sum(dim=1, keepdim=True)
    assert (shares - 1 / 7).abs().max() < 0.03


class Placed:
    """A network of known law. Without a visible end token it gives the end (offset + 1) / 100; with one, in the later half of
    the canvas, 1 / (1 + the distance to it), and nothing elsewhere. A third of the rest goes to one pad, a fifth to another."""

    shift = False

    def __init__(self, canvas):
        self.canvas, self.words = canvas, vocabulary()

    def __call__(self, tokens, visible=None, causal=False):
        shares = torch.zeros(*tokens.shape, 1)
        for row, line in enumerate(tokens.tolist()):
            offset = -1
            for place, token in enumerate(line):
                offset += token in (self.words[MASK], self.words[END])
                ends = [at for at in range(place, len(line)) if line[at] == self.words[END]]
                if self.words[END] not in line:
                    shares[row, place] = (offset + 1) / 100
                elif ends and offset >= self.canvas // 2:
                    shares[row, place] = 1 / (1 + ends[0] - place)
        return shares

    def head(self, states):
        end = states.double()
        laws = torch.full((*states.shape[:-1], len(self.words)), 1e-12, dtype=torch.float64)
        laws[..., self.words[END]] = end[..., 0].clamp_min(1e-12)
        for name, share in ((PADS[3], 1 / 3), (PADS[5], 1 / 5), ("the", 7 / 15)):
            laws[..., self.words[name]] = share * (1 - end[..., 0]).clamp_min(1e-12)
        laws[..., self.words[MASK]] = 5.0  # who does not leave it out finds it
        return laws.log().float()


def test_the_profile_of_the_first_step_is_by_position():
    words, canvas = vocabulary(), 20
    pads = [words[pad] for pad in PADS]
    profile = recipe.first_step(Placed(canvas), pads, recipe.questions(3, 0), canvas)
    end = [(offset + 1) / 100 for offset in range(canvas)]
    assert profile["end"] == pytest.approx(end, abs=1e-5)
    assert profile["pad"] == pytest.approx([(1 - share) / 3 for share in end], abs=1e-5)
    assert profile["confidence"] == pytest.approx([7 / 15 * (1 - share) for share in end], abs=1e-5)
    assert set(recipe.first_step(Placed(canvas), [], recipe.questions(3, 0), canvas)) == {"confidence", "end"}


def test_the_cascade_shows_an_end_behind_positions_of_the_later_half():
    found = recipe.cascade(Placed(40), recipe.questions(3, 0), 40, reach=5)
    assert found == pytest.approx({distance: 1 / (1 + distance) for distance in range(1, 6)}, abs=1e-5)
