"""Trains the probe of diffadapt: it reads the last hidden row of a question and says how it is best answered.

    decodery train diffadapt --model smollm2-135m --folder work --artifact diffadapt-smollm2-135m

1. The model answers short questions that rules make, several times each, in the normal way. 2. A question is hard where few
answers are right, easy where most are and the model was nevertheless uncertain along them, else normal. 3. Two small layers
learn to tell this from the question alone. Interrupted, it goes on where it was: answers are kept in the work folder.
Liu et al., DiffAdapt, 2025, arXiv 2510.19669. The rule of labels is reconstructed from the paper's figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from decodery.errors import BadInput
from decodery.evaluation.short_questions import ShortQuestion, short_questions
from decodery.models.forward import POST_NORM, Forward, Rows
from decodery.routing.diffadapt.strategies import CLASSES, PREAMBLE, Policy, Probe, Router, mean_entropy
from decodery.training.options import add_options, progress_bars, read_options, recipe_parser, refusing, silent

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.training.options import Show

ANSWERS = "answers.jsonl"
EASY, NORMAL, HARD = range(3)


@dataclass(frozen=True)
class ProbeRecipe:
    """questions, samples: how many, and answers to each. budget: tokens of an answer. batch: answers written together. gamma,
    alpha: share of right answers below which a question is hard, and from which it may be easy. least: questions of each class;
    where a class has fewer, both move to the terciles of the shares. width: of the probe. steps, rate, decay: of AdamW.
    held_out: share of questions by which it stops early. patience: steps without a gain. seed: of questions, answers, probe.
    """

    questions: int = 400
    samples: int = 8
    budget: int = 48
    batch: int = 32
    gamma: float = 0.2
    alpha: float = 0.7
    least: int = 40
    width: int = 128
    steps: int = 200
    rate: float = 1e-3
    decay: float = 1e-2
    held_out: float = 0.15
    patience: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Labels:
    """classes: [n] 0 easy, 1 normal, 2 hard. gamma, alpha, beta: the thresholds that were used; beta in nats. moved: whether
    gamma and alpha are terciles."""

    classes: NDArray[np.int64]
    gamma: float
    alpha: float
    beta: float
    moved: bool


def prompt_ids(lm: LanguageModel, policy: Policy, question: str) -> list[int]:
    """The neutral prompt, which ends with the question's last token."""
    return [*lm.tokenize(policy.preamble), *lm.encode(question)] if policy.preamble else lm.tokenize(question)


def written_answers(
    lm: LanguageModel,
    questions: Sequence[ShortQuestion],
    policy: Policy,
    recipe: ProbeRecipe,
    folder: Path,
    progress: Show = silent,
) -> list[list[list[int]]]:
    """Token ids of `samples` answers to each question by the normal strategy. Kept in `folder`, batch by batch."""
    path, strategy = folder / ANSWERS, policy.normal
    suffix = lm.encode(strategy.suffix)
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    together = max(1, recipe.batch // recipe.samples)
    with path.open("a") as stream:
        for start in range(len(kept), len(questions), together):
            progress("answers", start, len(questions))
            some = questions[start : start + together]
            replies = lm.generate(
                [[*prompt_ids(lm, policy, one.text), *suffix] for one in some for _ in range(recipe.samples)],
                method="autoregressive",
                temperature=strategy.temperature,
                seed=[
                    recipe.seed * 1_000_003 + place * recipe.samples + sample
                    for place in range(start, start + len(some))
                    for sample in range(recipe.samples)
                ],
                max_new_tokens=strategy.budget(recipe.budget),
                stop=[policy.stop],
            )
            for place, one in enumerate(some):
                own = replies[place * recipe.samples : (place + 1) * recipe.samples]
                entry = {"question": one.text, "answers": [list(reply.token_ids) for reply in own]}
                stream.write(json.dumps(entry) + "\n")
                kept.append(entry)
            stream.flush()
    progress("answers", len(questions), len(questions))
    if [entry["question"] for entry in kept[: len(questions)]] != [one.text for one in questions]:
        raise BadInput(f"the work folder {folder} holds answers to other questions; give another folder.")
    return [entry["answers"] for entry in kept[: len(questions)]]


def observed(
    lm: LanguageModel,
    questions: Sequence[ShortQuestion],
    answers: Sequence[Sequence[Sequence[int]]],
    policy: Policy,
    progress: Show = silent,
) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """Of each question: its last hidden row [n, hidden] float32, the share [n] of right answers, and the mean entropy [n] along
    them in nats. A question's rows are scored once for all answers."""
    network, suffix = lm.network, lm.encode(policy.normal.suffix)
    rows, shares, entropies = [], [], []
    beginning = network.new_sequence()
    preamble = lm.tokenize(policy.preamble) if policy.preamble else []
    if preamble:
        network.run([Forward(beginning, preamble, logits=Rows.NONE)])
    for place, (question, own) in enumerate(zip(questions, answers, strict=True)):
        sequence = beginning.fork()
        ids = prompt_ids(lm, policy, question.text)[len(preamble) :]
        [scores] = network.run([Forward(sequence, ids, taps=(POST_NORM,), logits=Rows.NONE)])
        rows.append(scores.hidden[POST_NORM][-1].float().cpu().clone())
        found = []
        for one in {tuple(answer): answer for answer in own}.values():
            fork = sequence.fork()
            fed = [*suffix, *one[:-1]]
            [scores] = network.run([Forward(fork, fed, logits=range(len(suffix) - 1, len(fed)))])
            found += [mean_entropy(scores.logits)] * sum(tuple(answer) == tuple(one) for answer in own)
        entropies.append(float(np.mean(found)))
        shares.append(np.mean([question.right(policy.normal.suffix + lm.tokenizer.decode(list(one))) for one in own]))
        progress("entropies", place + 1, len(questions))
    return torch.stack(rows), np.array(shares), np.array(entropies)


def label(shares: NDArray[np.float64], entropies: NDArray[np.float64], recipe: ProbeRecipe) -> Labels:
    """Hard below gamma; easy from alpha on where the entropy is at least the median of such; else normal. Where a class has
    fewer than `least`, gamma and alpha become the terciles of the shares."""

    def made(gamma: float, alpha: float, moved: bool) -> Labels:
        good = shares >= alpha
        beta = float(np.median(entropies[good])) if good.any() else float("inf")
        return Labels(classes_of(shares, entropies, gamma, alpha, beta), gamma, alpha, beta, moved)

    found = made(recipe.gamma, recipe.alpha, False)
    if np.bincount(found.classes, minlength=3).min() >= recipe.least:
        return found
    low, high = np.quantile(shares, [1 / 3, 2 / 3])
    # Questions without a right answer are hard, however many there are.
    return made(max(float(low), float(np.nextafter(0, 1))), float(high), True)


def classes_of(
    shares: NDArray[np.float64], entropies: NDArray[np.float64], gamma: float, alpha: float, beta: float
) -> NDArray[np.int64]:
    """Classes [n] by given thresholds."""
    found = np.full(len(shares), NORMAL)
    found[(shares >= alpha) & (entropies >= beta)] = EASY
    found[shares < gamma] = HARD
    return found


def train_probe(rows: Tensor, classes: NDArray[np.int64], recipe: ProbeRecipe, progress: Show = silent) -> tuple[
    Probe, dict[str, float]
]:  # fmt: skip
    """A probe of rows [n, hidden] and their classes [n], and what it does on questions held out of its training: balanced
    accuracy and loss. Rare classes weigh as much as frequent ones. Raises BadInput where a class is missing."""
    wanted = torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(rows), generator=generator)
    outside = max(1, round(len(rows) * recipe.held_out))
    held, own = order[:outside], order[outside:]
    counts = torch.bincount(wanted[own], minlength=3)
    if int(counts.min()) == 0:
        missing = ", ".join(name for name, count in zip(CLASSES, counts.tolist(), strict=True) if not count)
        raise BadInput(f"no question to learn from is {missing}; take more questions or samples, or other thresholds.")
    weights = len(own) / (3 * counts.float())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        probe = Probe(rows.shape[1], recipe.width)
    probe.mean.copy_(rows[own].mean(dim=0))
    probe.scale.copy_(rows[own].std(dim=0).clamp(min=1e-4))
    optimiser = torch.optim.AdamW(probe.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    best, state, since = float("inf"), probe.state_dict(), 0
    for step in range(recipe.steps):
        loss = F.cross_entropy(probe(rows[own]), wanted[own], weights)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            held_loss = float(F.cross_entropy(probe(rows[held]), wanted[held], weights))
        progress("probe", step + 1, recipe.steps)
        since += 1
        if held_loss < best:
            best, since = held_loss, 0
            state = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
        if since >= recipe.patience:
            break
    probe.load_state_dict(state)
    with torch.no_grad():
        chosen = probe(rows[held]).argmax(dim=-1)
    return probe.eval(), {"balanced_accuracy": balanced_accuracy(chosen.numpy(), classes[held.numpy()]), "loss": best}


def balanced_accuracy(chosen: NDArray[Any], classes: NDArray[Any]) -> float:
    """Mean over the classes that occur of the share of theirs that were told right."""
    return float(np.mean([(chosen[classes == one] == one).mean() for one in np.unique(classes)]))


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = recipe_parser(
        "diffadapt", __doc__, folder="where answers are kept while it runs", artifact="the folder of the probe"
    )
    parser.add_argument("--model", default="smollm2-135m", help="whose probe it is; default: smollm2-135m")
    add_options(parser, ProbeRecipe())
    given = parser.parse_args(arguments)
    from decodery.loading import load

    recipe, begun = read_options(ProbeRecipe(), vars(given)), time.monotonic()
    given.folder.mkdir(parents=True, exist_ok=True)
    lm, policy = load(given.model), Policy(preamble=PREAMBLE)
    questions = short_questions(recipe.questions, recipe.seed)
    with progress_bars() as show:
        answers = written_answers(lm, questions, policy, recipe, given.folder, show)
        rows, shares, entropies = observed(lm, questions, answers, policy, show)
        labels = label(shares, entropies, recipe)
        probe, metrics = train_probe(rows, labels.classes, recipe, show)
    counts = np.bincount(labels.classes, minlength=3).tolist()
    fingerprint = lm.network.fingerprint()
    kinds: dict[str, list[int]] = {}
    for question, one in zip(questions, labels.classes.tolist(), strict=True):
        kinds.setdefault(question.kind, [0, 0, 0])[one] += 1
    lengths = np.array([len(lm.encode(question.text)) for question in questions])
    card = {
        "model": lm.name,
        "recipe": asdict(recipe),
        "command": f"decodery train diffadapt --model {given.model} --questions {recipe.questions} "
        f"--samples {recipe.samples}",
        "seed": recipe.seed,
        "seconds_of_last_run": round(time.monotonic() - begun, 1),
        "thresholds": {
            "gamma": labels.gamma,
            "alpha": labels.alpha,
            "beta": round(labels.beta, 4),
            "terciles": labels.moved,
        },
        "kinds": kinds,
        "lengths": [round(float(lengths[labels.classes == one].mean()), 2) for one in (EASY, NORMAL, HARD)],
        "metrics": {
            "questions": dict(zip(CLASSES, counts, strict=True)),
            "balanced_accuracy_of_held_out_questions": round(metrics["balanced_accuracy"], 4),
        },
    }
    Router(probe, policy, fingerprint).write(given.artifact, card)
    sys.stdout.write(f"{json.dumps(card['metrics'])}\n")


if __name__ == "__main__":
    main()
