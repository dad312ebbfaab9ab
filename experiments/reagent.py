"""What ReAGent finds where the deciding token is known, and how faithful its weights are beside others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from decodery.audit.baselines import Inside, occlusion, random_weights
from decodery.audit.faithfulness import Faithfulness, faithfulness
from decodery.audit.reagent import Importance, ReagentSettings, reagent
from decodery.audit.replacers import InferentialReplacer
from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.intervals import Array
from decodery.language_model import LanguageModel
from decodery.training.library_texts import paragraphs
from experiments.texts import loaded

WORDS = """
river tower mango stone piano tiger cloud lemon sugar horse table paper music ocean metal glass chair apple bread snake
""".split()  # noqa: SIM905
IRRELEVANT = "It rained in the valley that day."


@dataclass(frozen=True)
class Settings:
    """prompts: of copied words. steps: most of a chain. texts, tokens: passages that the model continues, and how far; given:
    tokens of each passage."""

    model: str = "smollm2-135m"
    prompts: int = 50
    steps: int = 300
    texts: int = 10
    tokens: int = 10
    given: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Copy:
    """A text that repeats itself, and what must come. place: of the token that decides it. prefix: how many tokens of
    something else stand before it."""

    number: int
    ids: tuple[int, ...]
    target: int
    place: int
    prefix: int


@cache
def copies(settings: Settings) -> list[Copy]:
    """Texts in which the model copies, and leaving out the copied token lowers its probability most."""
    lm, found = loaded(settings.model), []
    chance = np.random.Generator(np.random.Philox(key=settings.seed))
    for number in range(40 * settings.prompts):
        words, count = chance.permutation(WORDS)[:8], int(chance.integers(4, 7))
        text = f" {' '.join(words)} {' '.join(words[:count])}"
        prefix, ids, target = lm.encode(IRRELEVANT), lm.encode(text), lm.encode(f" {words[count]}")
        if len(target) != 1 or ids.count(target[0]) != 1:
            continue
        whole = [*prefix, *ids]
        if lm.generate(whole, temperature=0, max_new_tokens=1).token_ids != target:
            continue
        place = whole.index(target[0])
        if int(np.argmax(lm.run(occlusion(lm.network, ids, target[0])))) != place - len(prefix):
            continue
        found.append(Copy(number, tuple(whole), target[0], place, len(prefix)))
        if len(found) == settings.prompts:
            return found
    raise BadInput(f"{settings.model} copies too rarely: {len(found)} of {settings.prompts} prompts.")


def searched(lm: LanguageModel, asked: Sequence[tuple[Sequence[int], int, int]], steps: int) -> list[Importance]:
    """What ReAGent says of contexts, targets and seeds, side by side in the same passes."""
    found = lm.run(
        [
            reagent(lm.network, context, target, InferentialReplacer(), ReagentSettings(steps=steps, seed=seed))
            for context, target, seed in asked
        ]
    )
    for one in found:
        if isinstance(one, Exception):
            raise one
    return list(found)


def copied(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def told(item: Copy, weights: Array, importance: Importance | None = None) -> Mapping[str, float]:
        rank = int((weights > weights[item.place]).sum())
        deciding = float(weights[item.prefix :].mean())
        values = {
            "top 3": float(rank < 3),
            "deciding": deciding * len(weights),
            "irrelevant": float(weights[1 : item.prefix].mean()) * len(weights),
        }
        if importance is not None:
            values |= {"steps": float(importance.steps), "converged": float(importance.converged)}
        return values

    @cache
    def found() -> dict[int, Importance]:
        """All prompts in the same passes."""
        return dict(
            zip(
                (item.number for item in copies(settings)),
                searched(
                    lm,
                    [(item.ids, item.target, settings.seed + item.number) for item in copies(settings)],
                    settings.steps,
                ),
                strict=True,
            )
        )

    def by_reagent(item: Copy) -> Mapping[str, float]:
        return told(item, found()[item.number].weights, found()[item.number])

    def left_out(item: Copy) -> Mapping[str, float]:
        return told(item, lm.run(occlusion(lm.network, item.ids, item.target)))

    def random(item: Copy) -> Mapping[str, float]:
        chance = np.random.Generator(np.random.Philox(key=item.number))
        return told(item, random_weights(len(item.ids), chance))

    arms = [Arm("ReAGent", by_reagent), Arm("leave one out", left_out), Arm("random", random)]
    figures = [
        Figure("in the top 3", "top 3", share=True, form=".0%"),
        Figure("weight in the text", "deciding"),
        Figure("in the sentence before", "irrelevant"),
        Figure("steps", "steps", middle=True, form=".0f"),
        Figure("converged", "converged", share=True, form=".0%"),
        Figure(
            "less before",
            derive=lambda drawn, arm: drawn(arm, "weight in the text") - drawn(arm, "in the sentence before"),
        ),
    ]
    claims = [
        PublishedClaim("the deciding token is in the top 3, in 80 % and more", "in the top 3", "ReAGent", 0.8),
        PublishedClaim("a sentence of something else matters less", "less before", "ReAGent"),
    ]
    about = (
        "Words that are repeated, behind a sentence of something else; the token that is copied decides what comes, by "
        f"leaving one out. At most {settings.steps} steps. Weights are those of a token, 1 being what all alike would have; "
        "the first token, which is never replaced, is left out."
    )
    return Study(about, copies(settings), arms, figures, claims, arms_are="by", lm=lm)


@dataclass(frozen=True)
class Passage:
    """Tokens that were given and written: those from `given` on are attributed."""

    ids: tuple[int, ...]
    given: int


def written(lm: LanguageModel, settings: Settings) -> list[Passage]:
    found = []
    for text in paragraphs(4 * settings.texts, shortest=200)[::4]:
        prompt = lm.encode(text)[: settings.given]
        reply = lm.generate(prompt, temperature=0, max_new_tokens=settings.tokens, ignore_eos=True)
        found.append(Passage((*prompt, *reply.token_ids), settings.given))
    return found


def over_random(figure: str) -> Callable[[Callable[[str, str], Array], str], Array]:
    """The logarithm of a figure over that of random weights; of random weights itself, nothing."""

    def derive(drawn: Callable[[str, str], Array], arm: str) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(drawn(arm, figure) / drawn("random", figure)))

    return derive


def faithful(settings: Settings) -> Study:
    lm = loaded(settings.model)
    inside = Inside(lm)
    names = ("ReAGent", "integrated gradients", "leave one out", "random", "random again")

    def of_passage(passage: Passage) -> dict[str, dict[str, float]]:
        totals = {name: {"ns": 0.0, "nc": 0.0} for name in names}
        places = range(passage.given, len(passage.ids))
        asked = [(passage.ids[:place], passage.ids[place], settings.seed + place) for place in places]
        for place, importance in zip(places, searched(lm, asked, settings.steps), strict=True):
            context, target = passage.ids[:place], passage.ids[place]
            chance = np.random.Generator(
                np.random.Philox(np.random.SeedSequence((settings.seed, *passage.ids[:4], place)))
            )
            weights = [
                importance.weights,
                inside.integrated(context, target),
                lm.run(occlusion(lm.network, context, target)),
                random_weights(place, chance),
                random_weights(place, chance),
            ]
            found: list[Faithfulness] | None = lm.run(faithfulness(lm.network, context, weights, chance))
            for name, told in zip(names, found or (), strict=found is not None):
                totals[name]["ns"] += told.soft_ns
                totals[name]["nc"] += told.soft_nc
        return totals

    once = once_per_item(of_passage)

    def arm(name: str) -> Arm:
        return Arm(name, lambda passage: once(passage)[name])

    figures = [
        Figure("Soft-NS, a text", "ns"),
        Figure("Soft-NC, a text", "nc"),
        Figure("log Soft-NS over random", derive=over_random("Soft-NS, a text")),
        Figure("log Soft-NC over random", derive=over_random("Soft-NC, a text")),
    ]
    claims = [
        PublishedClaim("its weights are enough more than random ones", "log Soft-NS over random", "ReAGent"),
        PublishedClaim("and more is missed without them", "log Soft-NC over random", "ReAGent"),
        PublishedClaim(
            "more than by integrated gradients", "log Soft-NC over random", "ReAGent", "integrated gradients"
        ),
    ]
    about = (
        f"{settings.texts} passages of {settings.given} tokens, of which the model writes {settings.tokens} more, each "
        f"attributed; at most {settings.steps} steps, ten masks a token. Above 0: more than by random weights."
    )
    return Study(about, written(lm, settings), [arm(name) for name in names], figures, claims, arms_are="by", lm=lm)


EXPERIMENT = Experiment(
    slug="reagent",
    title="ReAGent",
    source="arXiv 2402.00794",
    measures=(
        "decodery.audit.baselines",
        "decodery.audit.faithfulness",
        "decodery.audit.reagent",
        "decodery.audit.replacers",
    ),
    settings=Settings(),
    studies={"copied": copied, "faithful": faithful},
)
