"""Finds the entropy from which `adadec` pauses with a model, from texts that are known to be right.

    decodery train adadec-threshold --model smollm2-135m --output adadec-smollm2-135m.json

One threshold is learned for code (functions of Python's library behind their docstrings) and one for prose (its documentation).
Or give solutions of your own, each line with a "prompt" and a "solution": --solutions solutions.jsonl. Then: decodery generate
--method "adadec(threshold=1.3)". Every token of a solution is scored once; a logistic regression says how likely it is the
model's first choice, given the entropy there. The threshold is the entropy at the cut of that probability which tells best on
tokens that were held out.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from decodery.errors import BadInput
from decodery.models.forward import Forward
from decodery.training.library_texts import functions, paragraphs
from decodery.training.options import progress_bars, recipe_parser, refusing

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

HELD_OUT = 0.2
CHUNK = 128
"""Rows that are scored at a time; each needs a vocabulary of numbers."""
Solution: TypeAlias = tuple[str, str]
"""A prompt, and what follows it."""


@dataclass(frozen=True)
class LearnedThreshold:
    """threshold: in nats. cut: the probability there; coefficient, intercept: of the regression; accuracy: of the cut, on
    `held_out` tokens; first: share of all tokens that are the model's first choice; tokens: how many."""

    threshold: float
    cut: float
    coefficient: float
    intercept: float
    accuracy: float
    first: float
    tokens: int
    held_out: int


def observe(lm: LanguageModel, solutions: Sequence[Solution], on_progress: Callable[[int, int], None]) -> tuple[
    NDArray[np.float64], NDArray[np.bool_]
]:  # fmt: skip
    """The entropy before every token of the solutions, in nats, and whether the token is the likeliest. Solutions that do not
    fit into the model's context are cut."""
    entropies: list[float] = []
    first: list[bool] = []
    for done, (prompt, solution) in enumerate(solutions):
        before, tokens = lm.tokenize(prompt), lm.encode(solution)
        text = [*before, *tokens][: lm.network.context]
        sequence = lm.network.new_sequence()
        if len(before) > 1:
            lm.network.run([Forward(sequence, text[: len(before) - 1], logits=())])
        while sequence.length < len(text) - 1:
            start = sequence.length
            [scores] = lm.network.run([Forward(sequence, text[start : min(start + CHUNK, len(text) - 1)])])
            laws = scores.logits.double().softmax(dim=-1)
            entropies += torch.special.entr(laws).sum(dim=-1).tolist()
            follows = torch.tensor(text[start + 1 : start + 1 + len(laws)])
            first += (scores.logits.argmax(dim=-1).cpu() == follows).tolist()
        on_progress(done + 1, len(solutions))
    return np.array(entropies), np.array(first)


def learn(entropies: NDArray[np.float64], first: NDArray[np.bool_], seed: int = 42) -> LearnedThreshold:
    """The threshold of observed tokens. Raises BadInput where their entropy does not tell, or they are too few."""
    count = len(entropies)
    order = np.random.default_rng(seed).permutation(count)
    held, kept = order[: round(count * HELD_OUT)], order[round(count * HELD_OUT) :]
    yes, no = kept[first[kept]], kept[~first[kept]]
    fewer = min(len(yes), len(no))
    if fewer == 0 or len(held) == 0:
        raise BadInput(f"{count} tokens are too few, or all alike, to learn a threshold from.")
    # The larger class is thinned out for the fit alone; the cut is chosen on tokens as they come.
    fitted = np.concatenate([yes[:fewer], no[:fewer]])
    coefficient, intercept = _regression(entropies[fitted], first[fitted].astype(float))
    if coefficient >= 0:
        raise BadInput(
            "the model's first choice is no likelier where its entropy is low; no threshold tells them apart."
        )
    chances = 1 / (1 + np.exp(-(intercept + coefficient * entropies[held])))
    cuts = [cut / 100 for cut in range(1, 100)]
    accuracies = [float(((chances >= cut) == first[held]).mean()) for cut in cuts]
    best = int(np.argmax(accuracies))
    cut = cuts[best]
    threshold = (math.log(cut / (1 - cut)) - intercept) / coefficient
    return LearnedThreshold(
        max(0.0, threshold), cut, coefficient, intercept, accuracies[best], float(first.mean()), count, len(held)
    )


def _regression(entropies: NDArray[np.float64], first: NDArray[np.float64]) -> tuple[float, float]:
    """Coefficient and intercept of a logistic regression, with a penalty of half the coefficient's square (Newton's method)."""
    inputs, weights = np.stack([entropies, np.ones_like(entropies)], axis=1), np.zeros(2)
    penalty = np.diag([1.0, 0.0])
    for _ in range(50):
        chances = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chances - first) + penalty @ weights
        curvature = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + penalty
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), slope)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def library_solutions(functions_: int, paragraphs_: int) -> dict[str, list[Solution]]:
    """What thresholds are learned from where no solutions are given: code and prose that every machine has. Of a paragraph, its
    first sentence is the prompt."""
    prose = [paragraph.partition(". ") for paragraph in paragraphs(paragraphs_)]
    return {
        "code": [(one.prompt, one.solution) for one in functions(functions_, examples=False)],
        "prose": [(first + dot.rstrip(), f" {rest.strip()}") for first, dot, rest in prose if rest.strip()],
    }


def read_solutions(path: Path) -> list[Solution]:
    """{"prompt": "...", "solution": "..."} a line. Raises BadInput."""
    try:
        lines = [line for line in path.expanduser().read_text("utf-8-sig").split("\n") if line.strip()]
        found = [(str(row["prompt"]), str(row["solution"])) for row in map(json.loads, lines)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the solutions {path} cannot be read: {error!r}.") from None
    if not found:
        raise BadInput(f"the solutions {path} are empty.")
    return found


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = recipe_parser("adadec-threshold", __doc__, output="where the thresholds and their fit go")
    parser.add_argument("--model", required=True, help="a causal model")
    parser.add_argument(
        "--solutions", type=Path, help='lines of {"prompt": …, "solution": …}; default: Python\'s own library'
    )
    parser.add_argument("--functions", type=int, default=400, help="of the library to learn from; default: 400")
    parser.add_argument("--paragraphs", type=int, default=600, help="of its documentation to learn from; default: 600")
    parser.add_argument("--seed", type=int, default=42, help="of the split; default: 42")
    given = parser.parse_args(arguments)
    from decodery.loading import load

    if given.solutions is None:
        solutions = library_solutions(given.functions, given.paragraphs)
        data = f"Python {platform.python_version()}: functions of the library, paragraphs of its documentation"
    else:
        solutions, data = {"code": read_solutions(given.solutions)}, given.solutions.name
    lm = load(given.model)
    metrics = {}
    for kind, pairs in solutions.items():
        with progress_bars() as show:
            observed = observe(lm, pairs, lambda done, total, kind=kind: show(kind, done, total))  # type: ignore[misc]
        found = learn(*observed, seed=given.seed)
        metrics[kind] = asdict(found)
        sys.stdout.write(f"{kind}: threshold={found.threshold:.3f}\n")
    card = {
        "what": "entropies in nats from which adadec pauses, by the kind of text",
        "model": lm.name,
        "fingerprint": lm.network.fingerprint(),
        "recipe": f"decodery train adadec-threshold --model {given.model} --output {given.output.name}",
        "data": data,
        "seed": given.seed,
        "metrics": metrics,
    }
    given.output.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
