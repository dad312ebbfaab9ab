"""Superposed decoding against sampling, greedy decoding and beam search: how likely its texts are, whether an answer is among
them, what they cost, and how near to linear the network is.

Prefixes are of a part of Python's own documentation; the runs of tokens are counted in the other part and in the docstrings of
its library.
"""

from __future__ import annotations

import ast
import math
import random
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, ClassVar

import torch

from decodery.engine.task import Asking
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.replies import Reply
from decodery.search.superposed_decoding.method import SuperposedDecoding, SuperposedText, shares
from experiments.texts import loaded

SPREAD = math.log(1.5)
"""By so much, in nats a token, the first draft may be less likely than greedy decoding's text."""


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    other: str = "gemma3-270m"
    corpus: str = ""
    prefixes: int = 200
    prefix: int = 15
    tokens: int = 10
    drafts: int = 3
    top_p: float = 0.95
    widths: tuple[int, ...] = (1, 2, 3, 5, 8)
    timed: int = 40
    watched: int = 60
    steps: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Beginning:
    """The beginning of a text. number: for its seed."""

    number: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Fact:
    """A question with an answer of a word or two."""

    number: int
    question: str
    answer: str


CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing, Russia Moscow, Egypt "
    "Cairo, Greece Athens, Portugal Lisbon, Austria Vienna, Sweden Stockholm, Norway Oslo, Finland Helsinki, "
    "Denmark Copenhagen, Poland Warsaw, Ireland Dublin, Hungary Budapest, Turkey Ankara, Iran Tehran, Iraq "
    "Baghdad, India Delhi, Thailand Bangkok, Cuba Havana, Kenya Nairobi, Canada Ottawa, Australia Canberra, Peru "
    "Lima, Chile Santiago, Belgium Brussels"
)
FACTS = (
    "The opposite of hot is=cold, The opposite of up is=down, The opposite of big is=small, The opposite of day "
    "is=night, The opposite of black is=white, The opposite of left is=right, The opposite of open is=closed, The"
    " color of grass is=green, The color of the sky on a clear day is=blue, The color of snow is=white, The color"
    " of blood is=red, The day after Monday is=Tuesday, The day after Friday is=Saturday, The month after March "
    "is=April, The month after June is=July, The planet closest to the Sun is=Mercury, The largest planet in the "
    "solar system is=Jupiter, The first president of the United States was=George Washington, Romeo and Juliet "
    "was written by=William Shakespeare, The language spoken in Brazil is=Portuguese, The language spoken in "
    "Mexico is=Spanish, The currency of Japan is the=yen, The currency of the United Kingdom is the=pound, The "
    "chemical symbol for gold is=Au, Water is made of hydrogen and=oxygen, The king of the jungle is the=lion, A "
    "baby dog is called a=puppy, A baby cat is called a=kitten, The number of days in a week is=seven, The "
    "largest ocean on Earth is the=Pacific"
)


def facts() -> list[Fact]:
    """Short answers that small models know some of."""
    pairs = [
        (f"The capital of {country} is", city) for country, city in (pair.split() for pair in CAPITALS.split(", "))
    ]
    pairs += [tuple(pair.split("=")) for pair in FACTS.split(", ")]  # type: ignore[misc]
    return [Fact(number, *pair) for number, pair in enumerate(pairs)]


def docstrings() -> list[str]:
    """Those of Python's library, in the order of its files."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
    return found


@cache
def counted() -> str:
    """A file of the texts whose runs are counted: every second topic of the documentation, and the docstrings."""
    path = Path(tempfile.mkdtemp()) / "corpus.txt"
    path.write_text("\n\n".join([*[text for _, text in sorted(topics.items())][::2], *docstrings()]), "utf-8")
    return str(path)


def beginnings(lm: LanguageModel, settings: Settings, count: int) -> list[Beginning]:
    """Beginnings of paragraphs of the other topics."""
    texts = [text for _, text in sorted(topics.items())][1::2]
    paragraphs = [part for text in texts for part in text.split("\n\n") if part[:1].isalpha() and len(part) > 200]
    random.Random(settings.seed).shuffle(paragraphs)
    read = [lm.encode(" ".join(part.split()))[: settings.prefix] for part in paragraphs]
    return [Beginning(number, tuple(tokens)) for number, tokens in enumerate(read[:count])]


def spec(settings: Settings, drafts: int | None = None, ngrams: bool = True) -> str:
    """As one writes it."""
    more = f", ngrams=corpus, corpus='{settings.corpus or counted()}'" if ngrams else ""
    return f"superposed-decoding(drafts={drafts or settings.drafts}{more})"


def decoded(
    lm: LanguageModel, settings: Settings, prompt: Any, method: str, number: int, n: int, **more: Any
) -> list[Reply]:
    given: Any = lm.generate(
        prompt, method, n=n, seed=settings.seed + number, max_new_tokens=settings.tokens, ignore_eos=True, **more
    )
    return given if isinstance(given, list) else [given]


def told(lm: LanguageModel, prompt: Sequence[int], replies: Sequence[Reply], tokens: int) -> dict[str, float]:
    """Nats a token of texts under the model itself, and what they cost."""
    scored = lm.score([reply.token_ids for reply in replies], prompt=list(prompt))
    nats = [-one.log_probability / tokens for one in scored]
    stats = {id(reply.stats): reply.stats for reply in replies}.values()
    return {
        "first": nats[0],
        "best": min(nats),
        "mean": sum(nats) / len(nats),
        "rows": float(sum(one.rows - one.prompt_tokens for one in stats)),
        "milliseconds": 1e3 * max(one.seconds for one in stats),
    }


def as_many(lm: LanguageModel, settings: Settings, items: Sequence[Beginning]) -> int:
    """How many samples take no longer than the drafts, by the medians over a few beginnings; at least one."""

    def middle(method: str, n: int, **more: Any) -> float:
        times = []
        for item in items[:15]:
            replies = decoded(lm, settings, list(item.tokens), method, item.number, n, **more)
            times.append(max(reply.stats.seconds for reply in replies))
        return sorted(times)[len(times) // 2]

    limit, count = middle(spec(settings), settings.drafts), 1
    while (
        count < settings.drafts and middle("autoregressive", count + 1, temperature=1.0, top_p=settings.top_p) <= limit
    ):
        count += 1
    return count


def texts(name: str, settings: Settings) -> Study:
    lm = loaded(getattr(settings, name))
    items, k = beginnings(lm, settings, settings.prefixes), settings.drafts
    equal = as_many(lm, settings, items)
    nucleus = {"temperature": 1.0, "top_p": settings.top_p}

    @once_per_item
    def greedy(item: Beginning) -> Mapping[str, float]:
        prompt = list(item.tokens)
        return told(lm, prompt, decoded(lm, settings, prompt, "autoregressive", item.number, 1), settings.tokens)

    @once_per_item
    def without(item: Beginning) -> list[Reply]:
        return decoded(lm, settings, list(item.tokens), spec(settings, ngrams=False), item.number, k)

    def arm(label: str, method: str, n: int, **more: Any) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            prompt, plain = list(item.tokens), greedy(item)
            off = without(item)
            if label == "greedy":
                return {**plain, "over greedy": 0.0}
            replies = off if label == "no n-grams" else decoded(lm, settings, prompt, method, item.number, n, **more)
            found = told(lm, prompt, replies, settings.tokens)
            found["over greedy"] = found["first"] - plain["first"]
            if label == "superposed":
                others = {tuple(reply.token_ids) for reply in off}
                found["changed"] = sum(tuple(reply.token_ids) not in others for reply in replies) / k
            return found

        return Arm(label, measure)

    arms = [
        arm("greedy", "autoregressive", 1),
        arm("a sample", "autoregressive", 1, **nucleus),
        arm("samples of as long", "autoregressive", equal, **nucleus),
        arm(f"{k} samples", "autoregressive", k, **nucleus),
        arm("beam search", f"beam-search(beams={k})", k),
        arm("superposed", spec(settings), k),
        arm("no n-grams", spec(settings, ngrams=False), k),
    ]
    figures = [
        Figure("first", "first"),
        Figure("best", "best"),
        Figure("mean", "mean"),
        Figure("over greedy", "over greedy"),
        Figure("changed", "changed", form=".0%"),
        Figure("rows", "rows", form=".0f"),
        Figure("milliseconds", "milliseconds", middle=True, form=".0f"),
    ]
    claims = [
        PublishedClaim("its best text is likelier than a sample", "best", "superposed", "a sample", above=False),
        PublishedClaim("and less likely than beam search's best", "best", "superposed", "beam search"),
        PublishedClaim(
            "its best is likelier than samples' in the same time",
            "best",
            "superposed",
            "samples of as long",
            above=False,
        ),
        PublishedClaim(
            "its first is within 1.5 times greedy's perplexity", "over greedy", "superposed", SPREAD, above=False
        ),
    ]
    about = (
        f"{len(items)} beginnings of {settings.prefix} tokens of Python's documentation, {settings.tokens} more tokens; "
        f"{lm.name}. first, best, mean: nats a token of a method's texts under the model itself. changed: texts that are "
        f"others without the n-grams. Samples of a nucleus of {settings.top_p}; {equal} of them take as long as {k} drafts."
    )
    return Study(about, items, arms, figures, claims, lm=lm)


def answers(name: str, settings: Settings) -> Study:
    lm, k = loaded(getattr(settings, name)), settings.drafts

    def arm(label: str, method: str, **more: Any) -> Arm:
        def measure(fact: Fact) -> Mapping[str, float]:
            replies = decoded(lm, settings, fact.question, method, fact.number, k, **more)
            right = [reply.text.strip().lower().startswith(fact.answer.lower()) for reply in replies]
            return {"first": float(right[0]), "any": float(any(right)), "gain": float(any(right)) - float(right[0])}

        return Arm(label, measure)

    arms = [
        arm("samples", "autoregressive", temperature=1.0, top_p=settings.top_p),
        arm("beam search", f"beam-search(beams={k})"),
        arm("superposed", spec(settings)),
        arm("no n-grams", spec(settings, ngrams=False)),
    ]
    figures = [
        Figure("P@1", "first", form=".0%", share=True),
        Figure(f"P@{k}", "any", form=".0%", share=True),
        Figure("gain", "gain", form=".0%"),
    ]
    claims = [
        PublishedClaim("more texts hold the answer more often than the first", "gain", "superposed", 0.0),
        PublishedClaim("its first is right more often than a sample", "P@1", "superposed", "samples"),
        PublishedClaim(
            "one of its texts is right more often than one of beam search's", f"P@{k}", "superposed", "beam search"
        ),
    ]
    about = (
        f"{len(facts())} questions of a short answer, {k} texts of each; {lm.name}. gain: P@{k} less P@1, which cannot be "
        "negative."
    )
    return Study(about, facts(), arms, figures, claims, lm=lm)


def cost(settings: Settings) -> Study:
    lm = loaded(settings.model)
    items = beginnings(lm, settings, settings.timed)

    def arm(drafts: int) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            replies = decoded(lm, settings, list(item.tokens), spec(settings, drafts), item.number, drafts)
            stats = replies[0].stats
            expected = (settings.tokens, settings.prefix + settings.tokens - 1)
            return {
                "milliseconds": 1e3 * stats.seconds,
                "as one text": float((stats.forwards, stats.rows) == expected),
            }

        return Arm(f"{drafts}", measure)

    one, most = str(min(settings.widths)), str(max(settings.widths))
    figures = [
        Figure("milliseconds", "milliseconds", middle=True, form=".0f"),
        Figure("against one", "milliseconds", middle=True, against=one, unit="x"),
        Figure("as one text", "as one text", form=".0%", share=True),
    ]
    claims = [
        PublishedClaim(f"{most} drafts take less than 1.6 times as long as one", "against one", most, 1.6, above=False),
        PublishedClaim("forwards and rows are those of one text", "as one text", most, every=True),
    ]
    about = f"{len(items)} beginnings, {settings.tokens} tokens, with n-grams; {lm.name}."
    return Study(about, items, [arm(drafts) for drafts in settings.widths], figures, claims, "drafts", lm)


Step = tuple[list[list[int]], list[float], torch.Tensor]
"""The drafts' new tokens, their shares, and the scores [vocabulary] after their mixture."""


@dataclass(frozen=True)
class Recorded(SuperposedDecoding):
    """The same, which notes what it sees. record: told of each step but the first."""

    name: ClassVar[str] = "superposed-decoding-recorded"
    record: ClassVar[Callable[[Step], None]]

    def _continued(
        self, live: Sequence[SuperposedText], row: torch.Tensor, *more: Any
    ) -> list[tuple[SuperposedText, int, float]]:
        if live[0].output.new_tokens:
            type(self).record(([draft.output.new_tokens for draft in live], list(shares(live)), row))
        return super()._continued(live, row, *more)


def linearity(settings: Settings) -> Study:
    lm = loaded(settings.model)
    items = beginnings(lm, settings, settings.watched)

    def own(text: Sequence[int]) -> Asking[torch.Tensor]:
        scores = yield Forward(lm.network.new_sequence(), text, logits=[len(text) - 1])
        row: torch.Tensor = scores.logits[0]
        return row

    @once_per_item
    def steps(item: Beginning) -> list[Mapping[str, float]]:
        seen: list[Step] = []
        Recorded.record = staticmethod(seen.append)
        method = Recorded(drafts=settings.drafts, ngrams="corpus", corpus=settings.corpus or counted())
        lm.generate(list(item.tokens), method, max_new_tokens=settings.steps + 1, ignore_eos=True)
        found: list[Mapping[str, float]] = []
        for texts, weights, row in seen:
            rows = torch.stack(lm.run([own([*item.tokens, *text]) for text in texts])).double()
            sums = (torch.tensor(weights, dtype=torch.float64)[:, None] * rows).sum(dim=0)
            likely = set(row.topk(3 * settings.drafts).indices.tolist())
            leader = rows[max(range(len(weights)), key=weights.__getitem__)]
            found.append(
                {
                    "cosine": float(torch.cosine_similarity(row.double(), sums, dim=0)),
                    "leader": float(int(row.argmax()) == int(leader.argmax())),
                    "recovered": sum(int(r.argmax()) in likely for r in rows) / len(rows),
                }
            )
        return found

    arms = [
        Arm(f"{step}", partial(lambda item, step: steps(item)[step - 1], step=step))
        for step in range(1, settings.steps + 1)
    ]
    figures = [
        Figure("cosine", "cosine", form=".3f"),
        Figure("the leader's choice", "leader", form=".0%", share=True),
        Figure("choices among the kept", "recovered", form=".0%"),
    ]
    last = str(min(10, settings.steps))
    claims = [PublishedClaim("the cosine is at least 0.6 for ten steps", "cosine", last, 0.6)]
    about = (
        f"{len(items)} beginnings; {lm.name}. cosine: of the scores after the mixture with the sum of the drafts' own, by "
        "their shares. choices among the kept: the drafts' own likeliest tokens that are among those kept of the mixture."
    )
    return Study(about, items, arms, figures, claims, "step", lm)


EXPERIMENT = Experiment(
    slug="superposed_decoding",
    title="Superposed decoding against samples, greedy decoding and beam search",
    source="arXiv 2405.18400",
    measures=("decodery.search.superposed_decoding",),
    settings=Settings(),
    studies={
        "texts": partial(texts, "model"),
        "texts-other": partial(texts, "other"),
        "answers": partial(answers, "model"),
        "answers-other": partial(answers, "other"),
        "cost": cost,
        "linearity": linearity,
    },
)
