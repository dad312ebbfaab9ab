"""Any-subset speculative decoding against plain decoding with the same model, on windows of held-out stories.

`drafts`: a window of which few tokens are given, by drafted positions and drafter; the same window at once without a verdict.
`texts`: tokens per iteration on such windows, and on windows of a text that repeats itself. `density`: bits per hidden token by
the joint law, by the law of a draft, and by how often tokens come. `cache`: runs that rounding changes where nothing is kept.
Ends are tokens like others here, so that all windows are filled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from decodery.any_order.joint_density import joint_density
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.language_model import LanguageModel
from decodery.models.store import resolve
from decodery.replies import Reply
from experiments.canvases import loaded

PLAIN = "any-subset-autoregressive"
PERIOD = 12
"""Tokens of the piece that a text repeats."""


@dataclass(frozen=True)
class Settings:
    model: str = "any-subset-stories"
    stories: str = "diffusion-stories"
    judge: str = "stories-twin"
    items: int = 16
    window: int = 64
    given: float = 0.05
    k: tuple[int, ...] = (2, 3, 5, 8)
    seed: int = 0


@dataclass(frozen=True)
class Hidden:
    """Token ids of a text, and the positions of it that are hidden."""

    tokens: tuple[int, ...]
    hidden: tuple[int, ...]

    def prompt(self, mask: int) -> list[int]:
        hidden = {*self.hidden}
        return [mask if place in hidden else token for place, token in enumerate(self.tokens)]


@cache
def stories(settings: Settings) -> list[list[int]]:
    """Held-out stories that fill a window, in tokens."""
    lm = loaded(settings.model)
    lines = (resolve(settings.stories) / "validation.txt").read_text("utf-8").splitlines()
    coded = [lm.encode(line) for line in lines]
    return [tokens[: settings.window] for tokens in coded if len(tokens) >= settings.window]


@cache
def windows(settings: Settings, repeated: bool = False, given: float | None = None) -> tuple[Hidden, ...]:
    """The windows that all arms fill; of a text that repeats itself, its first piece again and again."""
    found = []
    share = settings.given if given is None else given
    for number, tokens in enumerate(stories(settings)[: settings.items]):
        text = (tokens[:PERIOD] * math.ceil(settings.window / PERIOD))[: settings.window] if repeated else tokens
        generator = np.random.Generator(np.random.Philox(key=[settings.seed, number]))
        shown = generator.permutation(len(text))[: max(1, round(share * len(text)))]
        found.append(Hidden(tuple(text), tuple(sorted({*range(len(text))} - {*shown.tolist()}))))
    return tuple(found)


def filled(settings: Settings, spec: str, asked: Sequence[Hidden], dtype: str = "float32") -> list[Reply]:
    """All windows filled by a method, together."""
    lm = loaded(settings.model, dtype)
    assert lm.diffusion is not None
    replies: list[Reply] = lm.generate(
        [one.prompt(lm.diffusion.mask_token_id) for one in asked],
        spec,
        temperature=1.0,
        seed=[settings.seed + number for number in range(len(asked))],
        max_new_tokens=settings.window,
        ignore_eos=True,
    )
    for reply in replies:
        if reply.error is not None:
            raise reply.error
    return replies


def counted(window: Hidden, reply: Reply) -> dict[str, float]:
    """What a filled window tells."""
    stats, details = reply.stats, reply.stats.details
    tokens = len(window.hidden)
    values = {"forwards": stats.forwards, "rows": stats.rows, "tokens": tokens, "no more": stats.forwards <= tokens}
    if "iterations" in details:
        values |= {"iterations": details["iterations"], "written": details["tokens_of_iterations"]}
        values |= {"look-ups": details.get("look_ups", 0), "same law": details["first_token_gap"] < 1e-5}
    return {name: float(value) for name, value in values.items()}


def perplexing(judge: LanguageModel, window: Hidden, reply: Reply) -> dict[str, float]:
    """How the text reads: bits per token of a causal model behind the first token, and the entropy of its tokens."""
    text = [*reply.prompt_token_ids, *reply.token_ids]
    [scored] = judge.score([text])
    counts = np.array(list(Counter(text).values())) / len(text)
    known = [value for value in scored.logprobs if math.isfinite(value)]
    return {"bits": -sum(known) / math.log(2), "judged": len(known), "entropy": float(-(counts * np.log(counts)).sum())}


def arm(
    name: str, items: Sequence[Hidden], replies: Callable[[], list[Reply]], *tell: Callable[..., Mapping[str, float]]
) -> Arm:
    """An arm whose windows are filled together when the first is asked for."""
    kept: list[Reply] = []

    def measure(number: int) -> Mapping[str, float]:
        if not kept:
            kept.extend(replies())
        values: dict[str, float] = {}
        for told in tell:
            values |= told(items[number], kept[number])
        return values

    return Arm(name, measure)


FORWARDS = Figure("forwards", "forwards", form=".1f")
ITERATION = Figure("tokens per iteration", "written", per="iterations")
SAVED = Figure("forwards per token", "forwards", per="tokens", form=".3f")


def drafts(settings: Settings) -> Study:
    items, judge = windows(settings), loaded(settings.judge)
    ks = [f"any-subset-speculative(k={k})" for k in settings.k]
    specs = {
        "one by one": PLAIN,
        **{f"self, k={k}": spec for k, spec in zip(settings.k, ks, strict=True)},
        "neighbours, k=5": "any-subset-speculative(draft=ngram)",
        "k=5, slack 0.1": "any-subset-speculative(r_atol=0.1)",
        "k=5, no verdict": "any-subset-speculative(r_atol=1)",
    }
    arms = [
        arm(name, items, partial(filled, settings, spec, items), counted, partial(perplexing, judge))
        for name, spec in specs.items()
    ]
    figures = (
        FORWARDS,
        SAVED,
        ITERATION,
        Figure("look-ups", "look-ups", form=".1f"),
        Figure("rows", "rows", form=".0f"),
        Figure("never more forwards than tokens", "no more", form=".0%", share=True),
        Figure("first token's laws equal", "same law", form=".0%", share=True),
        Figure("bits per token by the twin", "bits", per="judged"),
        Figure("entropy of tokens", "entropy"),
    )
    exact = [name for name in specs if name.startswith("self")]
    claims = [
        PublishedClaim("never more forwards than tokens", "never more forwards than tokens", name, every=True)
        for name in [*exact, "neighbours, k=5"]
    ]
    claims += [
        PublishedClaim("the first token's two laws are the same", "first token's laws equal", name, every=True)
        for name in exact
    ]
    claims += [
        PublishedClaim("fewer forwards than one by one", "forwards", "self, k=5", "one by one", above=False),
        PublishedClaim(
            "neighbours take fewer model forwards than self", "forwards", "neighbours, k=5", "self, k=5", above=False
        ),
        PublishedClaim(
            "more tokens per iteration than neighbours", "tokens per iteration", "self, k=5", "neighbours, k=5"
        ),
        PublishedClaim(
            "without a verdict texts read worse", "bits per token by the twin", "k=5, no verdict", "one by one"
        ),
    ]
    about = f"Windows of {settings.window} tokens, {settings.given:.0%} given, temperature 1."
    return Study(about, range(len(items)), arms, figures, claims, "drafts", loaded(settings.model))


def texts(settings: Settings) -> Study:
    arms = []
    for k in settings.k:
        for kind, repeated in (("plain", False), ("repetitive", True)):
            items = windows(settings, repeated, given=0.5)
            spec = f"any-subset-speculative(k={k})"
            arms.append(arm(f"k={k}, {kind}", items, partial(filled, settings, spec, items), counted))
    about = (
        f"Windows of {settings.window} tokens, half of them given: fronts of stories, or their first {PERIOD} tokens again and "
        "again; temperature 1."
    )
    return Study(about, range(settings.items), arms, (ITERATION, SAVED, FORWARDS), (), "text", loaded(settings.model))


def density(settings: Settings) -> Study:
    lm, arms = loaded(settings.model), []
    shares = (0.05, 0.5)
    counts = Counter(token for tokens in stories(settings)[settings.items :] for token in tokens)
    total = sum(counts.values()) + lm.network.vocabulary

    def unigram(window: Hidden) -> float:
        return -sum(math.log((counts[window.tokens[place]] + 1) / total) for place in window.hidden)

    def measured(window: Hidden, joint: bool) -> float:
        return -float(lm.run(joint_density(lm, window.tokens, window.hidden, joint)).sum())

    ways: dict[str, Callable[[Hidden], float]] = {
        "joint": partial(measured, joint=True),
        "as in a draft": partial(measured, joint=False),
        "how often tokens come": unigram,
    }

    def bits(way: Callable[[Hidden], float], items: Sequence[Hidden], number: int) -> Mapping[str, float]:
        return {"bits": way(items[number]) / math.log(2), "tokens": float(len(items[number].hidden))}

    claims = []
    for share in shares:
        items = windows(settings, given=share)
        arms += [Arm(f"{name}, {share:.0%} given", partial(bits, way, items)) for name, way in ways.items()]
        claims += [
            PublishedClaim(
                f"the joint law beats the other, {share:.0%} given", "bits per token", f"joint, {share:.0%} given",
                f"{other}, {share:.0%} given", above=False,
            )
            for other in list(ways)[1:]
        ]  # fmt: skip
    figure = Figure("bits per token", "bits", per="tokens")
    about = f"Hidden tokens of windows of {settings.window}, from held-out stories."
    return Study(about, range(settings.items), arms, (figure,), claims, "law", lm)


def _beside(
    items: Sequence[Hidden], alone: Callable[[], list[Reply]], window: Hidden, reply: Reply
) -> Mapping[str, float]:
    """A run and the one that keeps nothing."""
    other = alone()[items.index(window)]
    return {"same": float(other.token_ids == reply.token_ids), "all rows": float(other.stats.rows)}


def rounding(settings: Settings) -> Study:
    items, arms = windows(settings), []
    for dtype in ("float32", "bfloat16"):
        for spec in (PLAIN, "any-subset-speculative"):
            alone = cache(partial(filled, settings, f"{spec}(cache=none)", items, dtype))
            told = partial(_beside, items, alone)
            arms.append(arm(f"{spec}, {dtype}", items, partial(filled, settings, spec, items, dtype), counted, told))
    figures = (
        Figure("same tokens as without a cache", "same", form=".0%", share=True),
        Figure("rows", "rows", form=".0f"),
        Figure("rows without a cache", "all rows", form=".0f"),
    )
    return Study("Same windows and draws.", range(len(items)), arms, figures, (), "run", loaded(settings.model))


EXPERIMENT = Experiment(
    "any_subset_speculative",
    "Any-subset speculative decoding against one token at a time",
    "Guo & Ermon, 2025, arXiv 2504.20456",
    ("decodery.any_order", "decodery.diffusion.laws"),
    Settings(),
    {"drafts": drafts, "texts": texts, "density": density, "cache": rounding},
)
