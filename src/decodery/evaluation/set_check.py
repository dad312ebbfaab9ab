"""`decodery check` for methods that read marked sets: is the output the same for every order of the parts?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from decodery.engine.method import Method
from decodery.engine.prompt_layout import END, SPLIT, START, Arrangement, LaidOutPrompt
from decodery.engine.task import Asking
from decodery.evaluation.check_parts import CheckPart, Progress, dtype_of
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.prompts import PromptReader

NEAR = 1e-3
"""By so much scores may differ where only the order of sums does, in float32; a door left open moves them by hundreds of times
as much."""
USUAL = Arrangement("given", attention=False, positions=False)
"""As every prompt is read."""
TOKENS = 8


@dataclass(frozen=True)
class Marked:
    """A text with one set: what stands before it, its parts, and what follows."""

    before: str
    parts: tuple[str, ...]
    behind: str

    def in_order(self, order: Sequence[int]) -> str:
        """The text with the parts in this order."""
        return self.before + START + SPLIT.join(self.parts[place] for place in order) + END + self.behind

    def orders(self) -> list[tuple[int, ...]]:
        """All of them, that in which the parts stand first."""
        return list(itertools.permutations(range(len(self.parts))))


MARKED = (
    Marked("Which of these is a fruit? Options:", (" a stone", " apple", " a car with three wheels"), " The answer is"),
    Marked("Some animals:", (" cat", " an old grey elephant", " dog", " the dog"), " The largest of them is the"),
    Marked(
        "Notes:", (" It rains.", " Tom has two cats and a dog.", " Ann is away."), " Question: who has cats? Answer:"
    ),
    Marked("", ("one", "twenty-five", "3"), " are numbers. The smallest number is"),
)
"""Parts of unequal lengths; one is the beginning of another's end."""


def scores_after(lm: LanguageModel, text: str, arrangement: Arrangement) -> Tensor:
    """Raw scores [vocabulary] of the token after a text with sets."""
    prompt = PromptReader(lm.tokenizer, lm.name, lm.network.vocabulary).read(text, arrangement=arrangement)

    def asking() -> Asking[Tensor]:
        sequence = lm.network.new_sequence()
        if isinstance(prompt, LaidOutPrompt):
            yield prompt.layout.opening(sequence, prompt)
        scores = yield Forward(sequence, prompt[sequence.length :], logits=Rows.LAST)
        row: Tensor = scores.logits[0]
        return row

    found: Tensor = lm.run(asking())
    return found


def widest(rows: Sequence[Tensor]) -> float:
    """By how much rows of scores differ at most, from the first of them."""
    return max(float((row.double() - rows[0].double()).abs().max()) for row in rows)


def set_parts(lm: LanguageModel, method: Method, tell: Progress) -> list[CheckPart]:
    """The experiment on all orders of a few sets."""
    arrangement = method.arrangement
    assert arrangement is not None
    differences, plain, outputs = [], [], 0
    for place, marked in enumerate(MARKED):
        tell("orders", place, len(MARKED))
        texts = [marked.in_order(order) for order in marked.orders()]
        differences.append(widest([scores_after(lm, text, arrangement) for text in texts]))
        plain.append(widest([scores_after(lm, text, USUAL) for text in texts]))
        # One by one: in a batch, where a text stands in a pass may matter to rounding.
        replies = [lm.generate(text, method, max_new_tokens=TOKENS, seed=0) for text in texts]
        outputs = max(outputs, len({tuple(reply.token_ids) for reply in replies}))
    tell("orders", len(MARKED), len(MARKED))
    most, exact = max(differences), arrangement.order == "canonical"
    said = f"over all orders of {len(MARKED)} sets the scores differ by up to {most:.2g}"
    said += f", and a set has up to {outputs} {'output' if outputs == 1 else 'outputs'}"
    said += f"; read as usual they differ by up to {max(plain):.2g}"
    passed: bool | None = (most == 0 if exact else most < NEAR) and outputs == 1
    if not (arrangement.attention and arrangement.positions):
        passed, said = None, f"{said}; only both edits together promise that order means nothing"
    elif not exact and dtype_of(lm) != "float32":
        passed, said = None, f"{said}; without the canonical order this is promised in float32 only"
    numbers = {"difference": most, "outputs": outputs, "plain": max(plain), "dtype": dtype_of(lm)}
    return [CheckPart("same for every order", passed, said, numbers)]
