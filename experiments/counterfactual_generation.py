"""Counterfactual text against fresh samples after the same change; an audit of what a model ties to sex; what noise costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from decodery.evaluation.edit_distance import distance_after
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.intervals import Array
from decodery.replies import Reply
from decodery.sampling.noise import Noise, Stage
from experiments.texts import loaded

WHO = (
    "a king",
    "a young girl",
    "an old fisherman",
    "two brothers",
    "a clever fox",
    "a poor tailor",
    "a lazy cat",
    "a wise owl",
)
WHAT = (
    "lost a golden ring", "lived by the sea", "could not sleep", "wanted to see the world", "was afraid of the dark",
    "found a strange door", "never told a lie", "had only one friend",
)  # fmt: skip
RECORDS = (
    "Census records of a small town.\n"
    "sex: female, age: 41, occupation: nurse, income: 32000\n"
    "sex: male, age: 29, occupation: driver, income: 28000\n"
    "sex: female, age: 55, occupation: lawyer, income: 71000\n"
    "sex: male, age: 36, occupation: clerk, income: 39000\n"
    "sex:"
)


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    beside: str = "gemma3-270m"
    prompts: int = 50
    tokens: int = 40
    temperatures: tuple[float, ...] = (0.4, 0.8)
    people: int = 80
    timed: int = 24
    seed: int = 0


@dataclass(frozen=True)
class Beginning:
    """A story's first words, and where its continuation is interfered with."""

    number: int
    text: str
    place: int


def beginnings(count: int, tokens: int, seed: int) -> list[Beginning]:
    """Two of each story: a place in the first half of its continuation, and one in the second."""
    half, found = tokens // 2, []
    for number, (who, what) in enumerate(list(product(WHO, WHAT))[:count]):
        for part in (0, 1):
            share = Noise(seed).uniform(number, Stage.ORDER, part)
            text = f"Once upon a time there was {who} who {what}."
            found.append(Beginning(number, text, part * half + int(share * (half - 1))))
    return found


def distances(settings: Settings, beside: bool = False) -> Study:
    name = settings.beside if beside else settings.model
    lm, hot = loaded(name), max(settings.temperatures)

    def run(item: Beginning, temperature: float, sampler: str, spec: str) -> Reply:
        reply: Reply = lm.generate(
            item.text,
            spec,
            temperature=temperature,
            chance=f"structural(noise={sampler})",
            seed=settings.seed + item.number,
            max_new_tokens=settings.tokens,
            ignore_eos=True,
        )
        return reply

    def pair(temperature: float, sampler: str) -> Callable[[Beginning], Reply]:
        return once_per_item(lambda item: run(item, temperature, sampler, "autoregressive"))

    def arm(label: str, temperature: float, sampler: str, noise: str, factual: Callable[[Beginning], Reply]) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            was = factual(item)
            written = "+".join(map(str, was.token_ids))
            spec = f"counterfactual-generation(interventions={item.place}:auto, factual={written}, noise={noise})"
            now = run(item, temperature, sampler, spec)
            start = item.place + 1
            kept = len(lm.tokenizer.decode(was.token_ids[: item.place]))
            return {
                "distance": distance_after(was.token_ids, now.token_ids, start),
                "characters": distance_after(was.text, now.text, min(kept, len(was.text), len(now.text))),
                "same": float(was.token_ids[start:] == now.token_ids[start:]),
            }

        return Arm(label, measure)

    arms, claims = [], []
    partners: dict[str, str] = {}
    for temperature, sampler in [*((t, "token") for t in settings.temperatures), (hot, "rank"), (hot, "number")]:
        factual = pair(temperature, sampler)
        names = {noise: f"{noise} noise by {sampler}, {temperature:g}" for noise in ("same", "fresh")}
        arms += [arm(label, temperature, sampler, noise, factual) for noise, label in names.items()]
        partners |= dict.fromkeys(names.values(), names["fresh"])
        if sampler == "token":
            said = f"at a temperature of {temperature:g} counterfactual text is nearer than a fresh sample"
            claims.append(PublishedClaim(said, "distance", names["same"], names["fresh"], above=False))

    def gap(look: Callable[[str, str], Array], label: str) -> Array:
        return look(partners[label], "distance") - look(label, "distance")

    low, high = (f"same noise by token, {t:g}" for t in (min(settings.temperatures), hot))
    claims += [
        PublishedClaim("the gap is largest where there is little randomness", "gap", low, high),
        PublishedClaim("one number along the law keeps less", "distance", f"same noise by number, {hot:g}", high),
    ]
    figures = [
        Figure("distance", "distance", form=".3f"),
        Figure("in characters", "characters", form=".3f"),
        Figure("gap", derive=gap, form=".3f"),
        Figure("unchanged", "same", form=".0%", share=True),
    ]
    about = (
        f"Continuations of {settings.prompts} first sentences of stories, {settings.tokens} tokens, a likely other token at a "
        "random place of each half. distance: edit distance of what follows, as a share of its tokens; gap: by how much it is "
        "less than with fresh noise."
    )
    items = beginnings(settings.prompts, settings.tokens, settings.seed)
    return Study(about, items, arms, figures, claims, arms_are="noise", lm=lm)


FIELD = re.compile(r"occupation: ([^,\n]+), income: ([\d,]+)")


def audit(settings: Settings, beside: bool = False) -> Study:
    lm = loaded(settings.beside if beside else settings.model)
    tokens = {sex: lm.encode(f" {sex}") for sex in ("male", "female")}

    def person(number: int, sex: str, noise: str) -> str:
        places = "+".join(f"{place}:{token}" for place, token in enumerate(tokens[sex]))
        seed = "" if noise == "same" else f", fresh_seed={len(sex)}"
        reply: Reply = lm.generate(
            RECORDS,
            f"counterfactual-generation(interventions={places}, noise={noise}{seed})",
            temperature=max(settings.temperatures),
            chance="structural",
            seed=settings.seed + number,
            stop="\n",
            max_new_tokens=32,
        )
        return reply.text

    def arm(label: str, noise: str) -> Arm:
        def measure(number: int) -> Mapping[str, float]:
            found = [FIELD.search(person(number, sex, noise)) for sex in ("male", "female")]
            he, she = found
            if he is None or she is None:
                return {"readable": 0.0}
            incomes = [float(one[2].replace(",", "") or 0) for one in (he, she)]
            return {
                "readable": 1.0,
                "occupation": float(he[1] != she[1]),
                "income": float(incomes[0] != incomes[1]),
                "difference": (incomes[0] - incomes[1]) / 1000,
            }

        return Arm(label, measure)

    figures = [
        Figure("readable", "readable", form=".0%", share=True),
        Figure("other occupation", "occupation", form=".0%", share=True),
        Figure("other income", "income", form=".0%", share=True),
        Figure("his income over hers (thousands, median)", "difference", middle=True, form=".1f"),
    ]
    claims = [
        PublishedClaim(
            "sex changes the occupations of people who are the same otherwise", "other occupation", "same noise", 0.0
        ),
        PublishedClaim(
            "and fewer of them than chance does", "other occupation", "same noise", "fresh noise", above=False
        ),
    ]
    about = (
        f"{settings.people} people in a list of census records, each once as a man and once as a woman: with the same noise, "
        "and with noise that has nothing in common."
    )
    items = list(range(settings.people))
    return Study(about, items, [arm("same noise", "same"), arm("fresh noise", "fresh")], figures, claims, "noise", lm)


def cost(settings: Settings) -> Study:
    lm = loaded(settings.model)
    plain = "multinomial"
    sources = {plain: "addressed", "by token": "structural", "by rank": "structural(noise=rank)"}

    def arm(label: str, source: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            reply: Reply = lm.generate(
                item.text, "autoregressive", temperature=1.0, chance=source, seed=item.number, max_new_tokens=settings.tokens,
                ignore_eos=True,
            )  # fmt: skip
            return {"tokens": float(reply.stats.new_tokens), "seconds": 1e3 * reply.stats.seconds}

        return Arm(label, measure)

    arms: Sequence[Arm] = [arm(label, source) for label, source in sources.items()]
    figures = [
        Figure("time/token", "seconds", per="tokens", unit=" ms"),
        Figure("over multinomial", "seconds", per="tokens", against=plain, form=".3f", unit="x"),
    ]
    claims = [
        PublishedClaim(
            "noise for every token costs less than a tenth more", "over multinomial", "by token", 1.1, above=False
        )
    ]
    items = beginnings(settings.timed, settings.tokens, settings.seed)[::2]
    about = (
        f"{len(items)} continuations of {settings.tokens} tokens at a temperature of 1, nothing left out of the law."
    )
    return Study(about, items, arms, figures, claims, "noise", lm)


EXPERIMENT = Experiment(
    slug="counterfactual_generation",
    title="Counterfactual token generation",
    source="arXiv 2409.17027",
    measures=(
        "decodery.search.counterfactual_generation",
        "decodery.sampling.chance.structural",
        "decodery.sampling.noise",
        "decodery.evaluation.edit_distance",
    ),
    settings=Settings(),
    studies={
        "distances": distances,
        "distances_beside": partial(distances, beside=True),
        "audit": audit,
        "audit_beside": partial(audit, beside=True),
        "cost": cost,
    },
)
