"""Set-based prompting on questions with four options: how often it is right beside all orders of an ordinary prompt, and how
far scores move with the order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from decodery.engine.prompt_layout import Arrangement
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.set_check import NEAR, USUAL, Marked, scores_after, widest
from decodery.language_model import LanguageModel
from experiments.texts import loaded

SET, GIVEN = Arrangement(), Arrangement("given")
ATTENTION, POSITIONS = Arrangement("given", positions=False), Arrangement("given", attention=False)
READINGS = {
    "ordinary": "set-based-prompting(order=given, edit=none)",
    "set-based": "set-based-prompting",
    "attention alone": "set-based-prompting(order=given, edit=attention)",
    "positions alone": "set-based-prompting(order=given, edit=positions)",
}
KINDS = {
    "a fruit": "apple banana orange grape cherry pear peach lemon melon plum",
    "an animal": "dog cat horse cow sheep lion tiger rabbit elephant mouse",
    "a color": "red blue green yellow purple brown pink gray black white",
    "a country": "France Germany Japan Brazil Egypt Canada India Mexico Spain Norway",
    "a musical instrument": "piano violin guitar trumpet flute drum cello harp clarinet organ",
    "a vehicle": "car truck bicycle train bus airplane boat motorcycle tractor ship",
    "a part of the body": "hand foot knee elbow nose ear mouth shoulder finger neck",
    "a piece of clothing": "shirt hat coat shoes jacket dress socks gloves scarf skirt",
    "a tool": "hammer saw drill wrench screwdriver axe shovel pliers chisel rake",
    "a sport": "football tennis golf hockey swimming boxing rugby cricket baseball skiing",
}


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    other: str = "gemma3-270m"
    questions: int = 200
    ablated_orders: int = 6
    prompts: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """Four options, of which the one at `right` is right."""

    marked: Marked
    right: int


def questions(count: int, seed: int) -> list[Question]:
    """Which of four words is of a kind; the others are of three other kinds."""
    chosen, found = random.Random(seed), []
    for _ in range(count):
        kinds = chosen.sample(sorted(KINDS), 4)
        right = chosen.randrange(4)
        words = [chosen.choice(KINDS[kind].split()) for kind in kinds]
        text = f"Question: Which of these is {kinds[right]}?\nOptions:"
        found.append(
            Question(
                Marked(text, tuple(f" {word}," for word in words), f"\nAnswer: {kinds[right].capitalize()} is"), right
            )
        )
    return found


def chosen(lm: LanguageModel, question: Question, order: Sequence[int], method: str) -> int:
    """The option whose words are likeliest after the prompt."""
    prompt = lm.tokenize(question.marked.in_order(order), method=method)
    scored = lm.score([part.rstrip(",") for part in question.marked.parts], prompt=prompt)
    values = [one.log_probability for one in scored]
    return values.index(max(values))


def choices(name: str, settings: Settings) -> Study:
    lm = loaded(getattr(settings, name))
    items = questions(settings.questions, settings.seed)
    every = list(itertools.permutations(range(4)))
    few = random.Random(settings.seed).sample(every, settings.ablated_orders)

    def over(reading: str, orders: Sequence[Sequence[int]]) -> Callable[[Question], list[int]]:
        @once_per_item
        def answers(question: Question) -> list[int]:
            return [chosen(lm, question, order, READINGS[reading]) for order in orders]

        return answers

    ordinary = over("ordinary", every)
    sets, attention, positions = over("set-based", few), over("attention alone", few), over("positions alone", few)

    def rights(answers: list[int], question: Question) -> list[float]:
        return [float(answer == question.right) for answer in answers]

    def arm(
        label: str, found: Callable[[Question], list[int]], of: Callable[[list[float], list[int], Question], float]
    ) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            answers = found(question)
            return {
                "right": of(rights(answers, question), answers, question),
                "same": float(len(set(answers)) == 1),
            }

        return Arm(label, measure)

    def mean(right: list[float], answers: list[int], question: Question) -> float:
        return sum(right) / len(right)

    def majority(right: list[float], answers: list[int], question: Question) -> float:
        return float(max(range(4), key=answers.count) == question.right)

    arms = [
        arm("ordinary, mean of orders", ordinary, mean),
        arm("ordinary, as given", ordinary, lambda right, answers, question: right[0]),
        arm("ordinary, reversed", ordinary, lambda right, answers, question: right[-1]),
        arm("ordinary, worst order", ordinary, lambda right, answers, question: min(right)),
        arm("ordinary, best order", ordinary, lambda right, answers, question: max(right)),
        arm("ordinary, majority of orders", ordinary, majority),
        arm("attention alone", attention, mean),
        arm("positions alone", positions, mean),
        arm("set-based", sets, mean),
    ]
    figures = [Figure("right", "right", form=".1%"), Figure("same answer", "same", form=".0%", share=True)]
    claims = [
        PublishedClaim("it is right more often than the worst order", "right", "set-based", "ordinary, worst order"),
        PublishedClaim("and less often than the best", "right", "set-based", "ordinary, best order", above=False),
        PublishedClaim(
            "less often than orders on average", "right", "set-based", "ordinary, mean of orders", above=False
        ),
        PublishedClaim("its answer is the same for every order", "same answer", "set-based", every=True),
    ]
    about = (
        f"{len(items)} questions, which of four words is of a kind; the likeliest of the four words is the answer; {lm.name}. "
        f"Worst and best: of the {len(every)} orders of each question. The others over {len(few)} orders."
    )
    return Study(about, items, arms, figures, claims, "prompt", lm)


def scores(settings: Settings) -> Study:
    lm = loaded(settings.model, dtype="float32")
    items = questions(settings.prompts, settings.seed + 1)

    def arm(label: str, arrangement: Arrangement, labelled: bool = False) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            marked, rows = question.marked, []
            for order in marked.orders():
                parts = tuple(marked.parts[place] for place in order)
                if labelled:
                    parts = tuple(f" {letter}.{part}" for letter, part in zip("ABCD", parts, strict=True))
                whole = Marked(marked.before, parts, marked.behind)
                rows.append(scores_after(lm, whole.in_order(range(4)), arrangement))
            moved = widest(rows)
            return {"moved": moved, "tokens": float(len({int(row.argmax()) for row in rows})), "near": float(moved < NEAR),
                    "same": float(moved == 0.0)}  # fmt: skip

        return Arm(label, measure)

    arms = [
        arm("ordinary", USUAL),
        arm("attention alone", ATTENTION),
        arm("positions alone", POSITIONS),
        arm("set-based, as given", GIVEN),
        arm("set-based, canonical", SET),
        arm("set-based, with letters", GIVEN, labelled=True),
    ]
    figures = [
        Figure("moved", "moved", form=".3g"),
        Figure("first tokens", "tokens", form=".1f"),
        Figure("nearly the same", "near", form=".0%", share=True),
        Figure("the same bits", "same", form=".0%", share=True),
    ]
    claims = [
        PublishedClaim(
            "as given, scores move by less than 0.001", "nearly the same", "set-based, as given", every=True
        ),
        PublishedClaim("in the canonical order not by a bit", "the same bits", "set-based, canonical", every=True),
        PublishedClaim("the mask alone leaves them to the order", "moved", "attention alone", 0.05),
        PublishedClaim("so do the positions alone", "moved", "positions alone", 0.05),
        PublishedClaim("an ordinary prompt moves them", "moved", "ordinary", 0.5),
    ]
    about = (
        f"{len(items)} such questions, all 24 orders; {lm.name} in float32. moved: by how much a score of the next token "
        "differs at most from its value in the first order. first tokens: how many different tokens are the likeliest. with "
        "letters: a label A to D stands before each option and stays in its place, so that another order is another set."
    )
    return Study(about, items, arms, figures, claims, "prompt", lm)


EXPERIMENT = Experiment(
    slug="set_based_prompting",
    title="Set-based prompting beside all orders of ordinary prompts",
    source="arXiv 2406.06581",
    measures=("decodery.search.set_based_prompting", "decodery.engine.prompt_layout", "decodery.evaluation.set_check"),
    settings=Settings(),
    studies={"choices": partial(choices, "model"), "choices-other": partial(choices, "other"), "scores": scores},
)
