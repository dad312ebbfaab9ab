"""The recipe of an acceptance head for specdec-pp: from a drafter's hidden rows to the chance that the target takes its token.

    decodery train answers --model smollm2-135m --folder answers
    decodery train acceptance-head --draft smollm2-sibling --answers answers --folder work --artifact head

1. Target and drafter read the target's own answers X that were sampled at temperature 1. At every place the drafter draws a
token Y, whose label is min(1, p(Y) / q(Y)). 2. The drafter reads the text Z in which a place holds X with probability `share`
and else Y, for in drafts it sees its own tokens; its hidden rows at the places of Y are kept. 3. AdamW trains the head on rows
and labels, with the rejected mass weighted. 4. On prompts of its own the threshold is chosen by which rounds bring the most
tokens for their price. Interrupted, it goes on where it was. Source: SpecDec++, arXiv 2405.19715, section 3.2, and its code's
gen_acceptance.py and train.py.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decodery.errors import BadInput
from decodery.models.forward import ALL_LAYERS, POST_NORM, Forward, Layers, Rows
from decodery.speculative.specdec_pp.acceptance import AcceptanceHead, TrainedHead, corrected
from decodery.training.answers import OwnAnswer, in_groups, read_answers
from decodery.training.checkpoints import keep, kept, once, same_recipe
from decodery.training.options import (
    Show,
    add_options,
    progress_bars,
    read_options,
    recipe_parser,
    refusing,
    silent,
)

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.models.scorer import Scorer

PIECE = 64
"""Answers whose rows are kept in one file."""
LAWS_AT_ONCE = 256
"""Rows of whole laws that are there together, of both models."""
PARTS = (0.8, 0.9)
"""Shares of the prompts before which training, and choosing, end; the rest is for measuring."""


@dataclass(frozen=True)
class HeadRecipe:
    """layers: how many first layers of the target draft; 0: the draft model. texts: answers at most. blocks: of the head.
    rejection_weight: of the rejected mass in the loss. share: of places that hold the target's own token. epochs, rate, batch:
    of AdamW. thresholds: that are tried. tuning_texts, tuning_tokens: prompts, and tokens of each, on which they are. seed: of
    all.
    """

    layers: int = 0
    texts: int = 1500
    blocks: int = 3
    rejection_weight: float = 6.0
    share: float = 0.15
    epochs: int = 10
    rate: float = 1e-3
    batch: int = 1024
    thresholds: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    tuning_texts: int = 24
    tuning_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.rejection_weight <= 0 or self.blocks < 0:
            raise BadInput("share must lie between 0 and 1, rejection-weight above 0, blocks at 0 or above.")


@dataclass(frozen=True)
class DraftingNetwork:
    """The network that drafts, and the layers of it that do."""

    network: Scorer
    layers: Layers = ALL_LAYERS

    @property
    def count(self) -> int:
        """How many first layers; 0 for all."""
        return 0 if self.layers == ALL_LAYERS else len(self.layers.indices(self.network.layers))


@dataclass(frozen=True)
class Examples:
    """rows: [n, hidden] float16, the drafter's after its own tokens; accepted: [n] float32, the labels; texts: [n] int64, the
    number of the answer of each."""

    rows: Tensor
    accepted: Tensor
    texts: Tensor

    def of(self, wanted: Tensor) -> Examples:
        """Those where `wanted` [n] bool is true."""
        return Examples(self.rows[wanted], self.accepted[wanted], self.texts[wanted])


def labels(target: Tensor, draft: Tensor, drawn: Tensor) -> Tensor:
    """min(1, p / q) [n] of tokens `drawn` [n] from draft laws: scores [n, vocabulary] of target and drafter at temperature
    1."""
    places = drawn[:, None]
    p = target.log_softmax(dim=-1).gather(1, places)
    q = draft.log_softmax(dim=-1).gather(1, places)
    return (p - q)[:, 0].exp().clamp(max=1.0)


def mixed(texts: Tensor, drawn: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The target's tokens [n] with probability `share`, else the drafter's."""
    return torch.where(torch.rand(len(texts), generator=generator) < share, texts, drawn)


def examples_of(
    lm: LanguageModel, drafting: DraftingNetwork, answers: Sequence[OwnAnswer], first: int, recipe: HeadRecipe
) -> Examples:
    """Rows and labels of some answers, of which the first has the number `first`."""
    found: list[Examples] = []
    number = first
    for group in in_groups(answers, LAWS_AT_ONCE):
        scores = [_laws(scorer, layers, group) for scorer, layers in ((lm.network, ALL_LAYERS), _pair(drafting))]
        asks, drawn_of, told = [], [], []
        for place, answer in enumerate(group):
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number + place)
            target, draft = scores[0][place], scores[1][place]
            drawn = torch.multinomial(draft.softmax(dim=-1), 1, generator=generator)[:, 0]
            told.append(labels(target, draft, drawn))
            mix = mixed(torch.tensor(answer.output), drawn, recipe.share, generator)
            drawn_of.append((drawn, mix))
            asks.append(
                Forward(
                    drafting.network.new_sequence(),
                    [*answer.prompt, *mix.tolist()],
                    layers=drafting.layers,
                    taps=(POST_NORM,),
                    logits=Rows.NONE,
                )
            )
        for place, (answer, read) in enumerate(zip(group, drafting.network.run(asks), strict=True)):
            drawn, mix = drawn_of[place]
            own = drawn == mix
            rows = read.hidden[POST_NORM][len(answer.prompt) :][own].to(torch.float16)
            found.append(Examples(rows, told[place][own], torch.full((int(own.sum()),), number + place)))
        number += len(group)
    return _joined(found)


def _pair(drafting: DraftingNetwork) -> tuple[Scorer, Layers]:
    return drafting.network, drafting.layers


def _laws(network: Scorer, layers: Layers, group: Sequence[OwnAnswer]) -> list[Tensor]:
    """The scores [output, vocabulary] from which each token of the outputs comes."""
    asks = [
        Forward(
            network.new_sequence(),
            read := [*answer.prompt, *answer.output[:-1]],
            layers=layers,
            logits=range(len(answer.prompt) - 1, len(read)),
        )
        for answer in group
    ]
    return [scores.logits for scores in network.run(asks)]


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(*(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "accepted", "texts")))


def all_examples(
    lm: LanguageModel,
    drafting: DraftingNetwork,
    answers: Sequence[OwnAnswer],
    recipe: HeadRecipe,
    folder: Path,
    progress: Show = silent,
) -> Examples:
    """Rows and labels of all answers, kept in `folder` piece by piece."""
    found = []
    for first in range(0, len(answers), PIECE):
        progress("rows and labels", first, len(answers))
        path = folder / f"examples-{first:06d}.pt"

        def made(first: int = first) -> dict[str, Any]:
            return vars(examples_of(lm, drafting, answers[first : first + PIECE], first, recipe))

        found.append(Examples(**once(path, made)))
    progress("rows and labels", len(answers), len(answers))
    return _joined(found)


def weighted_loss(scores: Tensor, accepted: Tensor, rejection_weight: float) -> Tensor:
    """Cross entropy of soft labels, the rejected mass weighted: scores [n, 2], accepted [n]. Source: arXiv 2405.19715, section
    3.2, normalised as its code does."""
    reject, accept = -scores.log_softmax(dim=-1).T
    weight = rejection_weight * (1 - accepted)
    loss: Tensor = (weight * reject + accepted * accept).sum() / (weight.sum() + accepted.sum())
    return loss


def train_head(examples: Examples, recipe: HeadRecipe, folder: Path, progress: Show = silent) -> AcceptanceHead:
    """The head after all epochs, from the last one kept in `folder` on."""
    torch.manual_seed(recipe.seed)
    head = AcceptanceHead(examples.rows.shape[1], recipe.blocks)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.rate)
    steps = recipe.epochs * -(-len(examples.rows) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    identity, done = json.dumps(asdict(recipe)), 0
    if (state := kept(folder, identity)) is not None:
        head.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["epochs"]
    for epoch in range(done, recipe.epochs):
        order = torch.randperm(len(examples.rows), generator=torch.Generator().manual_seed(recipe.seed * 1009 + epoch))
        for places in order.split(recipe.batch):  # type: ignore[no-untyped-call]
            loss = weighted_loss(
                head(examples.rows[places].float()), examples.accepted[places], recipe.rejection_weight
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        progress("training", epoch + 1, recipe.epochs, f"loss {float(loss.detach()):.3f}")
        state = {"weights": head.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        keep(folder, identity, {**state, "epochs": epoch + 1})
    return head.eval()


@torch.no_grad()
def quality(head: AcceptanceHead, examples: Examples, rejection_weight: float) -> dict[str, float]:
    """How well a head tells: auc (0.5 is chance, of drawn outcomes: pairs weighted by their labels), brier of the corrected
    chance against the label's outcome, and brier_base of the mean label for all."""
    raw = head(examples.rows.float()).softmax(dim=-1)[:, 1]
    chance = corrected(raw, rejection_weight)
    accepted = examples.accepted
    base = accepted.mean()

    def brier(told: Tensor) -> float:
        return float((accepted * (1 - told) ** 2 + (1 - accepted) * told**2).mean())

    return {
        "auc": round(weighted_auc(raw, accepted), 4),
        "brier": round(brier(chance), 4),
        "brier_base": round(brier(base.expand_as(accepted)), 4),
        "accepted": round(float(base), 4),
    }


def weighted_auc(told: Tensor, accepted: Tensor) -> float:
    """The chance that of an accepted and a rejected token the accepted one was told the higher number, ties counting half:
    labels [n] are chances, each token counts on both sides by its."""
    from sklearn.metrics import roc_auc_score

    twice = torch.cat([told, told])
    outcome = torch.cat([torch.ones_like(told), torch.zeros_like(told)])
    return float(roc_auc_score(outcome, twice, sample_weight=torch.cat([accepted, 1 - accepted])))


def tokens_for_their_price(
    lm: LanguageModel, drafting: DraftingNetwork, spec: str, prompts: Sequence[list[int]], recipe: HeadRecipe
) -> float:
    """Tokens for the seconds of their passes, by this machine's cost curves: of each round one pass of the target over the
    draft, of each drafted token one of the drafter."""
    replies = lm.generate(list(prompts), spec, temperature=1.0, seed=recipe.seed, max_new_tokens=recipe.tuning_tokens)
    drafted, rounds, tokens = (
        sum(getattr(reply.stats, name) for reply in replies) for name in ("drafted", "rounds", "new_tokens")
    )
    network = drafting.network
    share = len(drafting.layers.indices(network.layers)) / network.layers
    price = rounds * lm.cost(lm.network)(1 + drafted / rounds) + drafted * lm.cost(network)(1) * share
    return float(tokens / price)


def parts(count: int) -> list[range]:
    """The numbers of the answers for training, for choosing and for measuring."""
    borders = [0, *(int(count * share) for share in PARTS), count]
    return [range(start, end) for start, end in pairwise(borders)]


def make(
    lm: LanguageModel,
    draft: str,
    recipe: HeadRecipe,
    answers_folder: Path,
    folder: Path,
    artifact: Path,
    progress: Show = silent,
    command: str = "",
) -> dict[str, Any]:
    """Run the recipe and write the artifact: the head and its card. Returns the card. draft: the draft model's name, where no
    first layers draft."""
    drafting = (
        DraftingNetwork(lm.network, Layers(0, recipe.layers))
        if recipe.layers
        else DraftingNetwork(lm.companion(draft).network)
    )
    if drafting.network.vocabulary != lm.network.vocabulary:
        raise BadInput(f"{draft} has another vocabulary than {lm.name}; the head needs a drafter of the same tokens.")
    answers = [answer for answer in read_answers(answers_folder, temperature=1.0) if answer.output][: recipe.texts]
    if len(answers) < 10:
        raise BadInput(f"{answers_folder} holds {len(answers)} answers at temperature 1; at least 10 are needed.")
    folder.mkdir(parents=True, exist_ok=True)
    names = lm.network.fingerprint(), drafting.network.fingerprint()
    data = {key: getattr(recipe, key) for key in ("layers", "texts", "share", "seed")}
    same_recipe(folder, {"target": names[0], "draft": names[1], **data})
    examples = all_examples(lm, drafting, answers, recipe, folder, progress)
    training, choosing, measuring = (
        examples.of((examples.texts >= part.start) & (examples.texts < part.stop)) for part in parts(len(answers))
    )
    head = train_head(training, recipe, folder, progress)
    told = {"recipe": asdict(recipe), "answers": len(answers)}
    found = TrainedHead(head, *names, recipe.layers, 0.7, recipe.rejection_weight, told)
    found.write(artifact)
    method = f"specdec-pp(draft=layers, layers={recipe.layers}" if recipe.layers else f"specdec-pp(draft='{draft}'"
    asked = [answers[place].prompt for place in parts(len(answers))[1]][: recipe.tuning_texts]
    rates = {}
    for number, threshold in enumerate(recipe.thresholds):
        progress("thresholds", number, len(recipe.thresholds))
        spec = f"{method}, head='{artifact}', threshold={threshold})"
        rates[threshold] = round(tokens_for_their_price(lm, drafting, spec, asked, recipe), 2)
    best = max(rates, key=rates.__getitem__)
    replace(found, threshold=best).write(artifact)
    card: dict[str, Any] = {
        "title": f"Acceptance head for {lm.name} and {draft if not recipe.layers else f'its first {recipe.layers} layers'}",
        "model": lm.name,
        "fingerprint": names[0],
        "target": names[0],
        "draft": names[1],
        "layers": recipe.layers,
        "blocks": "distinct",
        "recipe": asdict(recipe),
        "command": command or "decodery train acceptance-head",
        "data": f"{len(answers)} answers of {lm.name} at temperature 1; {len(training.rows)}, {len(choosing.rows)} and "
        f"{len(measuring.rows)} places for training, choosing and measuring",
        "threshold": best,
        "tokens_per_second_of_passes": {str(threshold): rate for threshold, rate in rates.items()},
        "metrics": {
            "choosing": quality(head, choosing, recipe.rejection_weight),
            "measuring": quality(head, measuring, recipe.rejection_weight),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    from decodery import loading

    parser = recipe_parser(
        "acceptance-head",
        __doc__,
        answers="the folder of `decodery train answers`",
        folder="where rows and checkpoints are kept",
        artifact="where the head and its card go",
    )
    parser.add_argument("--model", default="smollm2-135m", help="the target")
    parser.add_argument("--draft", default="smollm2-sibling", help="the draft model")
    add_options(parser, HeadRecipe())
    told = sys.argv[1:] if arguments is None else arguments
    given = vars(parser.parse_args(told))
    recipe = read_options(HeadRecipe(), given)
    places = given["answers"], given["folder"], given["artifact"]
    command = f"decodery train acceptance-head {shlex.join(told)}"
    with progress_bars() as show:
        card = make(loading.load(given["model"]), given["draft"], recipe, *places, show, command)
    Console().print_json(data={"threshold": card["threshold"], **card["metrics"]["measuring"]})


if __name__ == "__main__":
    main()
