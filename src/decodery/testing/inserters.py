"""Insertion language models whose laws are known: scorers for whole methods, without a network."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Listing

import torch
from torch import Tensor

from decodery.models.forward import Forward, Scores
from decodery.models.insertions import Insertions
from decodery.models.scorer import Scorer
from decodery.models.sequence import NothingKept, Sequence
from decodery.testing.hosts import LetterTokenizer, SmallLanguageModel

Text = tuple[int, ...]
SPECIAL = 3
"""The last tokens of the vocabulary: class, begin and hole."""


class InserterScorer(Scorer):
    """Scores from a function of the text, as it reads. Rows are told as hidden rows, which the head only takes apart.

    letters: tokens that can be inserted; class, begin and hole come after them. script: the text without class and begin ->
    logits [gaps, letters], the first gap being before the text, and the probability that it is complete.
    """

    def __init__(self, letters: int, script: Callable[[Text], tuple[Tensor, float]], *, name: str = "inserter"):
        self.letters, self.script, self.name = letters, script, name
        self.vocabulary, self.layers, self.context = letters + SPECIAL, 3, 1 << 12
        self.hidden = self.vocabulary + 2

    def new_sequence(self) -> Sequence:
        return Sequence(self, NothingKept())

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        answers = []
        for forward in forwards:
            places = list(forward.row_positions())
            assert sorted(places) == list(range(forward.count)), "places are 0 to the length, without gaps or repeats"
            assert forward.sequence.length == 0, "nothing is kept: all that stands to the right has moved"
            order = sorted(range(forward.count), key=places.__getitem__)
            tokens = [int(token) for token in forward.tokens]
            read = [tokens[row] for row in order]
            assert read[:2] == [self.letters, self.letters + 1], "class and begin stand in front"
            table, complete = self.script(tuple(read[2:]))
            # What cannot be inserted scores high: whoever forgets to ban it, draws it.
            rows = torch.full((forward.count, self.vocabulary + 2), 50.0)
            rows[[order[place] for place in range(1, forward.count)], : self.letters] = table.float()
            rows[:, -2] = torch.tensor(complete).log()
            rows[:, -1] = torch.tensor(1 - complete).log()
            answers.append(Scores(torch.empty(0, self.vocabulary), dict.fromkeys(forward.taps, rows)))
        return answers


def split_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The head: logits [..., slots, vocabulary] and stop logits [..., 2] of the rows of an `InserterScorer`."""
    return rows[..., :-2], rows[..., 0, -2:]


def random_script(letters: int, longest: int, seed: int = 0) -> Callable[[Text], tuple[Tensor, float]]:
    """A script of random tables, the same for the same text; a text without letters is hardly complete, one of `longest`
    surely."""

    def script(text: Text) -> tuple[Tensor, float]:
        mixed = seed + 1
        for token in text:
            mixed = (mixed * 31 + token + 1) % (2**61 - 1)
        generator = torch.Generator().manual_seed(mixed)
        table = 1.5 * torch.randn(len(text) + 1, letters, generator=generator, dtype=torch.float64)
        complete = float(torch.rand((), generator=generator, dtype=torch.float64)) * 0.8 + 0.1
        return table, 1.0 if len(text) >= longest else complete if text else 0.05

    return script


def inserting_language_model(
    scorer: InserterScorer, *, stop_threshold: float = 0.9, max_length: int = 64
) -> SmallLanguageModel:
    """A language model over such a scorer; its tokens are letters, and the last three of them class, begin and hole."""
    letters = scorer.letters
    described = Insertions(letters, letters + 1, letters + 2, (), False, stop_threshold, max_length, split_rows)
    return SmallLanguageModel(scorer, LetterTokenizer(scorer.vocabulary), insertions=described)


def text_law(
    script: Callable[[Text], tuple[Tensor, float]], threshold: float, most: int, temperature: float = 1.0
) -> dict[Text, float]:
    """The law of final texts, from the definition: the sum over all orders in which a text can come about.

    Of a text whose probability of being complete reaches `threshold`, or of `most` letters, nothing goes on.
    """
    living: dict[Text, float] = {(): 1.0}
    law: dict[Text, float] = {}
    for count in range(most + 1):
        following: dict[Text, float] = {}
        for text, mass in living.items():
            table, complete = script(text)
            if count == most or complete >= threshold:
                law[text] = law.get(text, 0.0) + mass
                continue
            shares = (table.double().flatten() / temperature).softmax(0).view_as(table)
            for gap in range(table.shape[0]):
                for token in range(table.shape[1]):
                    grown = (*text[:gap], token, *text[gap:])
                    following[grown] = following.get(grown, 0.0) + mass * float(shares[gap, token])
        living = following
    return law
