"""Audits of membership where the truth is known: halves of one corpus, two sources, real dates, and a model that was trained
on a random half."""

from __future__ import annotations

import datetime
import email.utils
import gzip
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from decodery.audit.discontinuity import WINDOWS, DateWindow, window_sweep
from decodery.audit.evidence import ScoreOptions
from decodery.audit.fine_tuning import FineTuning, fine_tuned
from decodery.audit.items import AuditText, randomised
from decodery.audit.measures import auc, measured, true_positives
from decodery.audit.membership import SHIFT, MembershipReport, audit_membership
from decodery.audit.scores import SCORES
from decodery.audit.shift import SEED, ShiftTest, shift_test
from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.language_model import LanguageModel
from decodery.training.library_texts import functions, paragraphs
from experiments.texts import loaded

CHEAP = (
    "loss",
    "zlib",
    "zlib-total",
    "lowercase",
    "ratio",
    "diff",
    "min-k",
    "min-k++",
    "surp",
    "recall",
    "con-recall",
    "dc-pdd",
)
DEAR = ("pac", "samia", "gradnorm")
SHOTS = 10
CHANGES = "/usr/share/doc/*/changelog.Debian.gz"
"""Dated texts of one kind that a Debian machine has: what maintainers wrote of each version of a package."""


@dataclass(frozen=True)
class Settings:
    """texts: of which a random half are members. words: of each, from its beginning. dear: texts that the dear scores see, as
    many of either kind. shuffles: random splits for the test of words. cutoff: of the dated texts; most: of them on a
    side."""

    model: str = "smollm2-135m"
    texts: int = 240
    words: int = 64
    dear: int = 40
    samples: int = 10
    shuffles: int = 40
    cutoff: str = "2021-06-01"
    most: int = 400
    epochs: int = 3
    rate: float = 5e-5
    probe: int = 60
    seed: int = 0


@cache
def corpus(words: int) -> tuple[str, ...]:
    """Paragraphs of Python's documentation, cut."""
    long = [text.split() for text in paragraphs(1 << 20, shortest=200)]
    return tuple(dict.fromkeys(" ".join(text[:words]) for text in long if len(text) >= words // 2))


@cache
def base(name: str) -> LanguageModel:
    """The path whose copies can be trained and read again with the same rounding."""
    return loaded(name, dtype="bfloat16", fast="native")


@dataclass(frozen=True)
class Design:
    """items: those audited. members, strangers: others, which are trained on and are not."""

    items: list[AuditText]
    members: list[str]
    strangers: list[str]


@cache
def design(settings: Settings) -> Design:
    texts = corpus(settings.words)
    drawn = randomised(texts, settings.seed)
    members, others = ([item for item in drawn if item.member is side] for side in (True, False))
    half = settings.texts // 2
    if half + SHOTS > len(members) or half + SHOTS + settings.probe > len(others):
        raise BadInput(
            f"there are {len(texts)} texts here, too few for {settings.texts} and shots and a probe besides."
        )
    return Design(
        [*members[:half], *others[:half]],
        [item.text for item in members[half : half + SHOTS]],
        [item.text for item in others[half:]],
    )


def options(settings: Settings, reference: LanguageModel) -> ScoreOptions:
    """All that the scores can be given but a masked model, which no machine has."""
    made = design(settings)
    return ScoreOptions(
        reference=reference,
        shots=tuple(made.strangers[:SHOTS]),
        member_shots=tuple(made.members),
        background=tuple(made.strangers[SHOTS:]),
        samples=settings.samples,
        continued=2 * settings.words,
        probe=tuple(made.strangers[SHOTS : SHOTS + settings.probe]),
        seed=settings.seed,
    )


def some(items: Sequence[AuditText], count: int) -> list[AuditText]:
    """As many members as others."""
    return [item for side in (True, False) for item in [i for i in items if i.member is side][: count // 2]]


# Words alone


def in_sample(items: Sequence[AuditText]) -> float:
    """The area of a forest over the very texts that it was fitted on: the mistake."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer

    labels = np.array([float(item.member) for item in items])
    counts = CountVectorizer(min_df=0.05).fit_transform([item.text for item in items])
    forest = RandomForestClassifier(100, max_depth=2, min_samples_leaf=5, random_state=SEED).fit(counts, labels)
    return measured(auc, forest.predict_proba(counts)[:, 1], labels).value


def code(words: int) -> list[str]:
    return [
        " ".join(f.solution.split()[:words])
        for f in functions(2000, examples=False)
        if len(f.solution.split()) >= words // 2
    ]


def two_sources(settings: Settings, seed: int) -> list[AuditText]:
    """Code as members, prose as others: nobody trained on either since."""
    draws = np.random.Generator(np.random.Philox(key=seed))
    sides = (code(settings.words), corpus(settings.words))
    return [
        AuditText(str(text), place == 0)
        for place, side in enumerate(sides)
        for text in draws.choice(list(side), settings.texts // 2, replace=False)
    ]


def words(settings: Settings) -> Study:
    def halves(seed: int) -> list[AuditText]:
        return some(randomised(corpus(settings.words), seed), settings.texts)

    def tested(items: Sequence[AuditText]) -> Mapping[str, float]:
        found = shift_test([item.text for item in items], [item.member for item in items])
        return {"auc": found.auc.value, "found": float(found.found)}

    arms = [
        Arm("halves of one corpus", lambda seed: tested(halves(seed))),
        Arm("the same, judged on what it was fitted on", lambda seed: {"auc": in_sample(halves(seed))}),
        Arm("prose and code", lambda seed: tested(two_sources(settings, seed))),
    ]
    figures = [Figure("AUC", "auc", form=".3f"), Figure("shift found", "found", share=True, form=".0%")]
    claims = [
        PublishedClaim("a random split is at chance: not above 0.55", "AUC", arms[0].name, 0.55, above=False),
        PublishedClaim("nor below 0.45", "AUC", arms[0].name, 0.45),
        PublishedClaim("judged in sample it would look like a shift", "AUC", arms[1].name, 0.6),
        PublishedClaim("two sources are told apart, at 0.8 and more", "AUC", arms[2].name, 0.8),
    ]
    about = f"{settings.texts} texts of {settings.words} words, half of them called members, drawn {settings.shuffles} times."
    return Study(about, range(settings.shuffles), arms, figures, claims, arms_are="texts")


@cache
def changes(settings: Settings) -> list[AuditText]:
    """What Debian's maintainers wrote, with its dates."""
    found: dict[str, AuditText] = {}
    for path in sorted(Path("/").glob(CHANGES.removeprefix("/"))):
        body: list[str] = []
        for line in gzip.decompress(path.read_bytes()).decode(errors="replace").split("\n"):
            if re.match(r"\S+ \([^)]*\) .*;", line):
                body = []
            elif line.startswith(" -- "):
                text = " ".join(" ".join(body).split()[: settings.words])
                parsed = email.utils.parsedate_tz(line.rsplit("  ", 1)[-1])
                if parsed is not None and len(text.split()) >= settings.words // 2:
                    found[text] = AuditText(text, False, datetime.date(*parsed[:3]))
            else:
                body.append(line)
    if not found:
        raise BadInput(f"this machine has no {CHANGES}; leave out the study of dates.")
    return list(found.values())


def dates(settings: Settings) -> Study:
    cutoff = datetime.date.fromisoformat(settings.cutoff)

    @cache
    def sweep() -> tuple[DateWindow, ...]:
        return window_sweep(changes(settings), cutoff)

    def arm(place: int, months: int) -> Arm:
        def measure(item: int) -> Mapping[str, float]:
            window = sweep()[place]
            told = {"members": float(window.members), "others": float(window.others)}
            if window.shift is not None:
                area = window.shift.auc
                told |= {"auc": area.value, "low": area.low, "high": area.high}
            return told

        return Arm(f"{months} months", measure)

    figures = [
        Figure("before", "members", form=".0f"),
        Figure("after", "others", form=".0f"),
        Figure("AUC of words", "auc", form=".3f"),
        Figure("99 % from", "low", form=".3f"),
        Figure("to", "high", form=".3f"),
    ]
    about = f"Entries of Debian's changelogs before and after {settings.cutoff}, {settings.words} words of each."
    return Study(about, [0], [arm(*one) for one in enumerate(WINDOWS)], figures, arms_are="window on each side")


# A model that was trained on nothing of it


def told_once(report: Callable[[], MembershipReport], names: Sequence[str], level: float) -> list[Arm]:
    """An arm for each score, with an interval of this level, and what the audit says."""

    def arm(name: str) -> Arm:
        def measure(item: int) -> Mapping[str, float]:
            found = report()
            values = found.values[name]
            members = np.array([1.0] * (len(values) // 2) + [0.0] * (len(values) - len(values) // 2))
            area = measured(auc, values, members, level, 10000)
            told = {"auc": area.value, "low": area.low, "high": area.high, "shift": float(found.verdict == SHIFT)}
            return told | {"chance": float(area.low <= 0.5 <= area.high)}

        return Arm(name, measure)

    return [arm(name) for name in names]


def intervals(level: str) -> list[Figure]:
    return [
        Figure("AUC", "auc", form=".3f"),
        Figure(f"{level} from", "low", form=".3f"),
        Figure("to", "high", form=".3f"),
        Figure("0.5 within", "chance", form=".0%"),
        Figure("verdict is shift", "shift", form=".0%"),
    ]


def untouched(settings: Settings) -> Study:
    @cache
    def report() -> MembershipReport:
        lm = base(settings.model)
        return audit_membership(lm, design(settings).items, options(settings, lm), CHEAP)

    @cache
    def few() -> MembershipReport:
        lm = base(settings.model)
        return audit_membership(lm, some(design(settings).items, settings.dear), options(settings, lm), DEAR)

    arms = [*told_once(report, CHEAP, 0.999), *told_once(few, DEAR, 0.999)]
    claims = [PublishedClaim(f"{name} is at chance", "0.5 within", name, every=True) for name in (*CHEAP, *DEAR)]
    about = (
        f"{settings.texts} texts, a random half of them called members, under the model as it is, which is its own reference; "
        f"pac, samia and gradnorm on {settings.dear} of them."
    )
    return Study(about, [0], arms, intervals("99.9 %"), claims, arms_are="score", lm=base(settings.model))


def planted(settings: Settings) -> Study:
    names = ("loss", "zlib", "lowercase", "min-k", "min-k++", "surp")

    @cache
    def report() -> MembershipReport:
        return audit_membership(base(settings.model), two_sources(settings, settings.seed), scores=names)

    claims = [
        PublishedClaim("words tell them apart, and the audit says so", "verdict is shift", "loss", every=True),
    ]
    about = f"{settings.texts} texts, code called members and prose others, under the model as it is."
    return Study(about, [0], told_once(report, names, 0.95), intervals("95 %"), claims, arms_are="score",
                 lm=base(settings.model))  # fmt: skip


# A model that was trained on half of them


def control(settings: Settings) -> Study:
    made = design(settings)
    names = (*CHEAP, *DEAR, "probe")

    @cache
    def found() -> tuple[dict[AuditText, dict[str, float]], ShiftTest]:
        lm = base(settings.model)
        seen = [lm.tokenize(text) for text in (*(item.text for item in made.items if item.member), *made.members)]
        how = FineTuning(settings.epochs, settings.rate, seed=settings.seed)
        tuned = fine_tuned(lm, seen, how, dtype=torch.bfloat16, fast="native")
        values: dict[AuditText, dict[str, float]] = {item: {} for item in made.items}
        shift = None
        for chosen, items in ((CHEAP, made.items), ((*DEAR, "probe"), some(made.items, settings.dear))):
            report = audit_membership(tuned, items, options(settings, lm), chosen)
            shift = shift or report.shift
            for name, column in report.values.items():
                for item, value in zip(items, column, strict=True):
                    values[item][name] = float(value)
        assert shift is not None
        for item, share in zip(made.items, shift.probabilities, strict=True):
            values[item]["words alone"] = float(share)
        return values, shift

    def arm(name: str) -> Arm:
        def measure(item: AuditText) -> Mapping[str, float]:
            value = found()[0][item].get(name, float("nan"))
            return {"score": value, "member": float(item.member)}

        return Arm(name, measure)

    figures = [
        Figure("AUC", "score", per="member", statistic=auc, form=".3f"),
        Figure("TPR at 10 %", "score", per="member", statistic=true_positives(0.1), form=".0%"),
        Figure("TPR at 1 %", "score", per="member", statistic=true_positives(0.01), form=".0%"),
    ]
    claims = [
        PublishedClaim("words alone are at chance: not above 0.6", "AUC", "words alone", 0.6, above=False),
        PublishedClaim("the ratio to the model before tells members, at 0.75 and more", "AUC", "ratio", 0.75),
        *(
            PublishedClaim("so does the score, at 0.75 and more", "AUC", name, 0.75)
            for name in ("loss", "min-k", "min-k++")
        ),
        *(
            PublishedClaim(f"the ratio is above {name}", "AUC", "ratio", name)
            for name in ("loss", "min-k", "min-k++", "recall")
        ),
    ]
    about = (
        f"{settings.texts} texts, of which a random half, and {SHOTS} besides, trained a copy of the model for "
        f"{settings.epochs} epochs at a rate of {settings.rate:g}; the reference is the model before. pac, samia, gradnorm "
        f"and probe on {settings.dear} texts. neighbourhood needs a masked language model, and was not measured."
    )
    arms = [arm(name) for name in ("words alone", *names)]
    return Study(about, made.items, arms, figures, claims, arms_are="score", lm=base(settings.model))


assert set(SCORES) == {*CHEAP, *DEAR, "probe", "neighbourhood"}

EXPERIMENT = Experiment(
    slug="membership_inference",
    title="Audit of membership",
    source="arXiv 2406.17975",
    measures=(
        "decodery.audit.discontinuity",
        "decodery.audit.evidence",
        "decodery.audit.fine_tuning",
        "decodery.audit.formulas",
        "decodery.audit.items",
        "decodery.audit.measures",
        "decodery.audit.membership",
        "decodery.audit.probe",
        "decodery.audit.scores",
        "decodery.audit.shift",
        "decodery.scoring",
    ),
    settings=Settings(),
    studies={"words": words, "dates": dates, "planted": planted, "untouched": untouched, "control": control},
)
