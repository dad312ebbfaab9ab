"""Watermarks: in how few tokens a mark is found, what it survives, what it costs, and what is found where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from decodery.evaluation.edit_distance import distance_after
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.language_model import LanguageModel
from decodery.provenance.watermark import detect
from decodery.replies import Reply
from decodery.sampling.noise import Noise, Stage
from decodery.sampling.watermarks.keys import SCHEMES, SequenceKey, WatermarkKey, key_of
from experiments.counterfactual_generation import WHAT, WHO
from experiments.texts import loaded

ALIGNED = ("exp", "its")
STATISTICS = ("edit", "simple")
REWRITE = (
    "Original: The old man walked slowly down to the river, because he wanted to see the boats before it got dark.\n"
    "Paraphrase: Before night fell the old man made his way to the riverside at an easy pace, hoping to catch sight of the "
    "boats.\n\n"
    "Original: She had never been to the city, and she was surprised by how loud it was. People were shouting everywhere.\n"
    "Paraphrase: The noise of the city astonished her, since it was her first visit. All around her there was shouting.\n\n"
    "Original: {}\n"
    "Paraphrase:"
)


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    paraphraser: str = "gemma3-270m"
    texts: int = 32
    changed: int = 20
    decoded: int = 12
    unmarked: int = 80
    short: int = 40
    tokens: int = 80
    share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Beginning:
    """A story's first words. Each text has a key of its own."""

    number: int
    text: str


def beginnings(count: int, seed: int) -> list[Beginning]:
    """Whose stories, in an order that follows from the seed; from number 64 on they come again, under other keys and seeds."""
    pairs = [(who, what) for who in WHO for what in WHAT]
    order = np.argsort([Noise(seed).uniform(place, Stage.ORDER) for place in range(len(pairs))])
    found = []
    for number in range(count):
        who, what = pairs[order[number % len(pairs)]]
        found.append(Beginning(number, f"Once upon a time there was {who} who {what}."))
    return found


def key_for(scheme: str, number: int, lm: LanguageModel, seed: int) -> WatermarkKey:
    secret = Noise(seed).key(number, Stage.TARGET, ("key", scheme)) % 2**63
    return key_of({"scheme": scheme, "key": secret, "vocabulary": lm.network.vocabulary})


@cache
def continued(settings: Settings, scheme: str, item: Beginning) -> Reply:
    """A continuation at a temperature of 1; scheme: none, greedy, or that of a mark."""
    lm = loaded(settings.model)
    mark: dict[str, Any] = {"watermark": key_for(scheme, item.number, lm, settings.seed)} if scheme in SCHEMES else {}
    reply: Reply = lm.generate(
        item.text, "autoregressive", temperature=0.0 if scheme == "greedy" else 1.0, seed=settings.seed + item.number,
        max_new_tokens=settings.tokens, ignore_eos=True, **mark,
    )  # fmt: skip
    return reply


def p_value(settings: Settings, scheme: str, statistic: str, tokens: Sequence[int], number: int) -> float:
    key = key_for(scheme, number, loaded(settings.model), settings.seed)
    choice: dict[str, Any] = {"statistic": statistic} if isinstance(key, SequenceKey) else {}
    if len(tokens) <= getattr(key, "window", 0):
        return 1.0  # a paraphraser said next to nothing
    return detect(tokens, key, seed=settings.seed + number, **choice).p_value


def ways() -> list[tuple[str, str, str]]:
    """Name, scheme and statistic of each way to look for a mark."""
    aligned = [(f"{scheme}, {statistic}", scheme, statistic) for scheme in ALIGNED for statistic in STATISTICS]
    return aligned + [(scheme, scheme, "context") for scheme in SCHEMES if scheme not in ALIGNED]


def power(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def arm(name: str, scheme: str, statistic: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            tokens = continued(settings, scheme, item).token_ids
            few = p_value(settings, scheme, statistic, tokens[: settings.short], item.number)
            all_ = p_value(settings, scheme, statistic, tokens, item.number)
            return {"few": few, "all": all_, "few found": float(few <= 0.01), "all found": float(all_ <= 0.01)}

        return Arm(name, measure)

    figures = [
        Figure(f"median p, {settings.short} tokens", "few", middle=True, form=".3g"),
        Figure("found", "few found", form=".0%", share=True),
        Figure(f"median p, {settings.tokens} tokens", "all", middle=True, form=".3g"),
        Figure("found in all", "all found", form=".0%", share=True),
    ]
    few, many = figures[0].name, figures[2].name
    claims = [
        PublishedClaim(f"exp is found in {settings.short} tokens (p of 0.01)", few, "exp, edit", 0.0101, above=False),
        PublishedClaim(f"its is found in {settings.tokens} tokens (p of 0.05)", many, "its, edit", 0.0501, above=False),
        PublishedClaim("exp is stronger than its", "found", "exp, edit", "its, edit"),
    ]
    about = (
        f"{settings.texts} continuations of first sentences of stories at a temperature of 1, a key of 256 entries (or a "
        "window as published) each; permutation tests with 199 fresh keys, whose least p is 0.005. found: p of 0.01 or less."
    )
    items = beginnings(settings.texts, settings.seed)
    return Study(about, items, [arm(*way) for way in ways()], figures, claims, "mark", lm)


# What is done to a text


def left_out(tokens: Sequence[int], share: float, draws: np.random.Generator, vocabulary: int) -> list[int]:
    gone = set(draws.permutation(len(tokens))[: round(share * len(tokens))].tolist())
    return [token for place, token in enumerate(tokens) if place not in gone]


def put_in(tokens: Sequence[int], share: float, draws: np.random.Generator, vocabulary: int) -> list[int]:
    found = list(tokens)
    for _ in range(round(share * len(tokens))):
        found.insert(int(draws.integers(len(found) + 1)), int(draws.integers(vocabulary)))
    return found


def exchanged(tokens: Sequence[int], share: float, draws: np.random.Generator, vocabulary: int) -> list[int]:
    found = list(tokens)
    for place in draws.permutation(len(tokens))[: round(share * len(tokens))].tolist():
        found[place] = int(draws.integers(vocabulary))
    return found


CHANGES: dict[str, Callable[[Sequence[int], float, np.random.Generator, int], list[int]]] = {
    "left out": left_out,
    "put in": put_in,
    "exchanged": exchanged,
}


@cache
def paraphrased(settings: Settings, text: str) -> str:
    """The text in other words, as far as a small model that follows two examples finds them."""
    prompt = REWRITE.format(" ".join(text.split()))
    said: Reply = loaded(settings.paraphraser).generate(
        prompt, temperature=0.7, top_p=0.95, seed=settings.seed, stop="\n", max_new_tokens=settings.tokens
    )
    return said.text.strip()


def changes(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def arm(name: str, scheme: str, statistic: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            reply = continued(settings, scheme, item)
            versions: dict[str, Sequence[int]] = {"read again": lm.encode(reply.text)}
            for label, change in CHANGES.items():
                draws = np.random.default_rng((settings.seed, item.number))
                versions[label] = change(reply.token_ids, settings.share, draws, lm.network.vocabulary)
            versions["paraphrased"] = lm.encode(paraphrased(settings, reply.text) or " ")
            found = {"distance": distance_after(versions["read again"], versions["paraphrased"], 0)}
            for label, tokens in versions.items():
                p = p_value(settings, scheme, statistic, tokens[:256], item.number)
                found |= {f"p, {label}": p, label: float(p <= 0.01)}
            return found

        return Arm(name, measure)

    labels = ["read again", *CHANGES, "paraphrased"]
    figures = [Figure(label, label, form=".0%", share=True) for label in labels]
    figures += [
        Figure("edit distance of paraphrases", "distance", form=".2f"),
        Figure("mean p, left out", "p, left out", form=".3f"),
        Figure("median p, left out", "p, left out", middle=True, form=".3f"),
    ]
    claims = [
        PublishedClaim(
            f"{scheme}: alignment survives deletions that sums do not", "mean p, left out", f"{scheme}, edit",
            f"{scheme}, simple", above=False,
        )
        for scheme in ALIGNED
    ]  # fmt: skip
    claims.append(PublishedClaim("exp survives a fifth of insertions", "put in", "exp, edit", 0.5))
    claims.append(PublishedClaim("exp survives a fifth of substitutions", "exchanged", "exp, edit", 0.5))
    about = (
        f"{settings.changed} of these texts of {settings.tokens} tokens: how many are found (p of 0.01 or less) after they "
        f"were decoded and tokenised again, after {settings.share:.0%} of the tokens were left out, put in or exchanged at "
        f"random, and after {settings.paraphraser}, a base model, was shown two paraphrases and then the text; edit "
        "distance: of its tokens, as a share."
    )
    items = beginnings(settings.changed, settings.seed)
    return Study(about, items, [arm(*way) for way in ways()], figures, claims, "mark", lm)


def speculation(settings: Settings) -> Study:
    """The same texts however they are decoded."""
    lm = loaded(settings.model)
    others = beginnings(settings.decoded, settings.seed)

    @once_per_item
    def alone(item: Beginning) -> list[Reply]:
        key = key_for("exp", item.number, lm, settings.seed)
        replies: list[Reply] = lm.generate(item.text, "autoregressive", n=2, **arguments(item, key))
        return replies

    def arguments(item: Beginning, key: WatermarkKey) -> dict[str, Any]:
        return {
            "temperature": 1.0, "seed": settings.seed + item.number, "max_new_tokens": settings.tokens, "ignore_eos": True,
            "watermark": key,
        }  # fmt: skip

    def judged(item: Beginning, replies: Sequence[Reply], plain: Sequence[Reply]) -> dict[str, float]:
        same = [list(one.token_ids) == list(other.token_ids) for one, other in zip(replies, plain, strict=True)]
        p = p_value(settings, "exp", "edit", replies[0].token_ids, item.number)
        return {"identical": float(all(same)), "p": p, "found": float(p <= 0.01)}

    def arm(name: str, decode: Callable[[Beginning, WatermarkKey], list[Reply]]) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            replies = decode(item, key_for("exp", item.number, lm, settings.seed))
            return judged(item, replies, alone(item)[: len(replies)])

        return Arm(name, measure)

    def by(method: str) -> Callable[[Beginning, WatermarkKey], list[Reply]]:
        return lambda item, key: lm.generate(item.text, method, n=2, **arguments(item, key))

    def batched(item: Beginning, key: WatermarkKey) -> list[Reply]:
        texts = [item.text, *(other.text for other in others[:3])]
        return [lm.generate(texts, "autoregressive", **arguments(item, key))[0]]

    def single(item: Beginning, key: WatermarkKey) -> list[Reply]:
        return [lm.generate(item.text, "autoregressive", **arguments(item, key))]

    arms = [
        arm("alone", single),
        arm("two samples", lambda item, key: alone(item)),
        arm("in a batch of four", batched),
        *(arm(method, by(method)) for method in ("prompt-lookup", "token-recycling", "cascade")),
    ]
    figures = [
        Figure("identical", "identical", form=".0%", share=True),
        Figure("found", "found", form=".0%", share=True),
        Figure("median p", "p", middle=True, form=".3g"),
    ]
    claims = [PublishedClaim(f"{one.name}: the same tokens", "identical", one.name, every=True) for one in arms]
    about = f"{len(others)} texts with an exp mark; two samples of each prompt share its reading; p by alignment, of the first."
    return Study(about, others, arms, figures, claims, "decoded", lm)


def unmarked(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def arm(name: str, scheme: str, statistic: str, written: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            # Greedy text has no noise, so that of a beginning there is one.
            whose = replace(item, number=0) if written == "greedy" else item
            tokens = continued(replace(settings, tokens=settings.short), written, whose).token_ids
            p = p_value(settings, scheme, statistic, tokens, item.number)
            return {"p": p, "at 0.05": float(p <= 0.05), "at 0.01": float(p <= 0.01)}

        return Arm(name, measure)

    arms = [
        *(arm(f"{name}: without a mark", scheme, statistic, "none") for name, scheme, statistic in ways()),
        *(arm(f"{scheme}, simple: greedy", scheme, "simple", "greedy") for scheme in ALIGNED),
    ]
    figures = [
        Figure("p of 0.05 or less", "at 0.05", form=".1%", share=True),
        Figure("p of 0.01 or less", "at 0.01", form=".1%", share=True),
        Figure("mean p", "p", form=".3f"),
    ]
    about = (
        f"{settings.unmarked} continuations of {settings.short} tokens that carry no mark, each beside a key of its own. The "
        "rates are those of false alarms; p that is valid has a mean of one half or more."
    )
    claims = [
        PublishedClaim(f"{one.name}: not more alarms than p says", "p of 0.05 or less", one.name, 0.1, above=False)
        for one in arms
    ]
    return Study(about, beginnings(settings.unmarked, settings.seed), arms, figures, claims, "mark", lm)


def quality(settings: Settings) -> Study:
    """What a mark does to the text."""
    lm = loaded(settings.model)

    def arm(name: str, scheme: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            reply = continued(settings, scheme, item)
            surprises = -lm.score(list(reply.token_ids), item.text).logprobs.double()
            return {"surprise": float(surprises.mean())}

        return Arm(name, measure)

    claims = [
        PublishedClaim("a kgw mark makes text more surprising", "nats/token", "kgw", "no mark"),
        *(PublishedClaim(f"{one}: text is no more surprising", "nats/token", one, "no mark") for one in ("exp", "its")),
    ]
    about = f"{settings.texts} texts of {settings.tokens} tokens; surprise under the model itself, without the mark."
    arms = [arm("no mark", "none"), *(arm(one, one) for one in SCHEMES)]
    figures = [Figure("nats/token", "surprise", form=".3f")]
    return Study(about, beginnings(settings.texts, settings.seed), arms, figures, claims, "mark", lm)


def cost(settings: Settings) -> Study:
    """What it costs to draw with a mark; each text is written when it is timed, so that the arms share what else runs."""
    lm = loaded(settings.model)

    def arm(name: str, scheme: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            reply = continued.__wrapped__(replace(settings, tokens=settings.short), scheme, item)
            return {"tokens": float(reply.stats.new_tokens), "seconds": 1e3 * reply.stats.seconds}

        return Arm(name, measure)

    figures = [
        Figure("time/token", "seconds", per="tokens", unit=" ms"),
        Figure("over no mark", "seconds", per="tokens", against="no mark", form=".2f", unit="x"),
    ]
    about = f"{settings.decoded} texts of {settings.short} tokens at a temperature of 1, nothing left out of the law."
    arms = [arm("no mark", "none"), *(arm(one, one) for one in SCHEMES)]
    return Study(about, beginnings(settings.decoded, settings.seed), arms, figures, (), "mark", lm)


EXPERIMENT = Experiment(
    slug="distortion_free_watermark",
    title="Distortion-free watermarks",
    source="arXiv 2307.15593",
    measures=(
        "decodery.provenance.alignment",
        "decodery.provenance.context",
        "decodery.provenance.watermark",
        "decodery.sampling.watermarks",
        "decodery.sampling.chance.watermark",
        "decodery.sampling.chance.keyed",
        "decodery.sampling.steps.watermark",
    ),
    settings=Settings(),
    studies={
        "power": power,
        "quality": quality,
        "changes": changes,
        "unmarked": unmarked,
        "speculation": speculation,
        "cost": cost,
    },
)
