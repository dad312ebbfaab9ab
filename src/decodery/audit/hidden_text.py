"""Whether a model carries a hidden text: candidates of token forcing are decoded further, and those that repeat themselves
without end are told; what a known secret leaves behind; an attack by sampling.

Source: Hoscilowic et al., arXiv 2406.02481. Its authors look for repetition by eye; the rule in numbers is this module's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.audit.evidence import Tell, silent
from decodery.audit.token_forcing import ForcingScan, ScanSettings, forced, prefixes, scan
from decodery.errors import BadInput

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

TIMES, COVERED, SHORTEST, DISTINCT = 3, 0.5, 2, 2
"""A span repeats so often and covers so much of a text; it has at least so many tokens, and so many different ones: bars and
"%%%%" are no hidden text."""
WORDS = 5
"""A secret is betrayed by so many of its words in a row."""


@dataclass(frozen=True)
class RepeatedSpan:
    """A span that a text repeats. start: where its first copy begins. length: tokens of one copy. times: copies, one behind the
    other."""

    start: int
    length: int
    times: int


def repeated_span(ids: Sequence[int]) -> RepeatedSpan | None:
    """The first span of the shortest period that comes at least `TIMES` times without a gap, has `DISTINCT` different tokens,
    and whose copies cover at least half of a text. None where there is none."""
    count = len(ids)
    for length in range(SHORTEST, count // TIMES + 1):
        run = 0
        for place in range(length, count + 1):
            if place < count and ids[place] == ids[place - length]:
                run += 1
                continue
            times, start = run // length + 1, place - run - length
            enough = times >= TIMES and times * length >= COVERED * count
            if enough and len(set(ids[start : start + length])) >= DISTINCT:
                return RepeatedSpan(start, length, times)
            run = 0
    return None


@dataclass(frozen=True)
class ForcedText:
    """A candidate. token: its id; start: what it says. score, mean: see `Continuations`, of the scan. text: what is decoded
    greedily behind it; ids: [n] its tokens. repeated: what it repeats, None where nothing; span: that as text; sureness: mean
    probability of the tokens of all copies."""

    token: int
    start: str
    score: float
    mean: float
    text: str
    ids: tuple[int, ...]
    repeated: RepeatedSpan | None = None
    span: str = ""
    sureness: float | None = None


def confirm(
    lm: LanguageModel, found: ForcingScan, threshold: float, length: int = 50, batch: int = 256, tell: Tell = silent
) -> list[ForcedText]:
    """Decode so many tokens behind each candidate, and look for repetition; highest scores first. The candidate itself counts
    as the first token of its text. Raises BadInput, NotEnoughMemory."""
    if not 0 <= threshold <= 1:
        raise BadInput(f"the threshold is a mean of probabilities, from 0 to 1, not {threshold:g}.")
    listed = found.candidates(threshold)
    count = 0

    def done(part: Any) -> None:
        nonlocal count
        count += len(part)
        tell("candidates", count, len(listed))

    decoded = forced(lm, found.prefix_ids, listed.starts.tolist(), length, batch, done)
    texts = []
    for place, token in enumerate(listed.starts.tolist()):
        ids = decoded.ids[place].tolist()
        said = ForcedText(
            token,
            lm.tokenizer.decode([token]),
            float(listed.scores[place]),
            float(listed.means[place]),
            lm.tokenizer.decode(ids),
            tuple(ids),
        )
        if (span := repeated_span([token, *ids])) is not None:
            sure = [1.0, *decoded.shares[place].tolist()][span.start : span.start + span.length * span.times]
            copy = lm.tokenizer.decode([token, *ids][span.start : span.start + span.length])
            said = replace(said, repeated=span, span=copy, sureness=sum(sure) / len(sure))
        texts.append(said)
    return texts


def betrays(text: str, secret: str, words: int = WORDS) -> bool:
    """Whether a text holds so many words of a secret in a row, or all of a shorter one; spaces do not count."""
    listed = secret.split()
    size = min(words, len(listed))
    plain = " ".join(text.split())
    return any(" ".join(listed[at : at + size]) in plain for at in range(len(listed) - size + 1)) if size else False


def printed_share(ids: Sequence[int], secret: Sequence[int]) -> float:
    """The longest run of a secret's tokens that a text holds, over all of them."""
    match = SequenceMatcher(None, list(ids), list(secret), autojunk=False).find_longest_match()
    return match.size / len(secret)


@dataclass(frozen=True)
class SecretStart:
    """A first token of a known secret. start: what it says, with a space or without. place: the share of all tokens that score
    as high or higher. score: its own. printed: the share of the secret's tokens that follow in a row, itself included."""

    start: str
    token: int
    place: float
    score: float
    printed: float


def secret_starts(lm: LanguageModel, found: ForcingScan, secret: str, length: int = 50) -> list[SecretStart]:
    """How the first token of a secret fares in a scan, without and with the space form. Raises BadInput where it is empty."""
    forms = {lm.encode(form)[0]: lm.encode(form) for form in (secret, f" {secret}") if secret.strip()}
    if not forms:
        raise BadInput("the secret is empty.")
    decoded = forced(lm, found.prefix_ids, list(forms), length)
    scores = dict(zip(found.found.starts.tolist(), found.found.scores.tolist(), strict=True))
    return [
        SecretStart(
            lm.tokenizer.decode([token]),
            token,
            found.place(token),
            scores[token],
            printed_share([token, *decoded.ids[place].tolist()], ids),
        )
        for place, (token, ids) in enumerate(forms.items())
    ]


@dataclass(frozen=True)
class AttackSettings:
    """samples: texts behind each prefix. top_k, length: of each text. words: of the secret in a row that betray it."""

    samples: int = 10
    top_k: int = 50
    length: int = 20
    words: int = WORDS
    seed: int = 0


@dataclass(frozen=True)
class PrefixAttack:
    """A prefix, alone or with a first token of the secret behind it. greedy: whether the likeliest text betrays the secret.
    betrayed: how many of the samples do."""

    prefix: str
    greedy: bool
    samples: int
    betrayed: int


def attack(
    lm: LanguageModel, secret: str, settings: AttackSettings | None = None, length: int = 50, tell: Tell = silent
) -> list[PrefixAttack]:
    """Force and sample a known secret: behind every prefix alone, and behind it and the secret's first token.

    length: tokens of the likeliest text. Behind "nothing" alone there is no text, so it is left out. Raises BadInput.
    """
    told = settings or AttackSettings()
    if not secret.strip():
        raise BadInput("the secret is empty.")
    first = lm.encode(secret)[0]
    word = lm.tokenizer.decode([first])
    listed: dict[str, tuple[int, ...]] = {}
    for name, ids in prefixes(lm).items():
        listed |= {name: ids} if ids else {}
        listed[f"{name} + {word!r}"] = (*ids, first)
    found = []
    for place, (name, ids) in enumerate(listed.items()):
        tell("prefixes", place, len(listed))
        settled: dict[str, Any] = {"method": "autoregressive", "ignore_eos": True}
        best = lm.generate(list(ids), max_new_tokens=length, **settled)
        drawn = lm.generate(
            [list(ids)] * told.samples,
            temperature=1.0,
            top_k=told.top_k,
            max_new_tokens=told.length,
            seed=[(told.seed * 1000 + place) * 1000 + number for number in range(told.samples)],
            **settled,
        )
        # The text with what it began with: the first token is a part of the secret.
        texts = [lm.tokenizer.decode([*ids, *reply.token_ids]) for reply in (best, *drawn)]
        greedy, *sampled = (betrays(text, secret, told.words) for text in texts)
        found.append(PrefixAttack(name, greedy, told.samples, sum(sampled)))
    tell("prefixes", len(listed), len(listed))
    return found


@dataclass(frozen=True)
class HiddenTextReport:
    """What token forcing found in a model.

    scanned: starts. threshold: of the score. candidates: those above it, highest first. leaving: share
    of starts -> the score above which no more of them are. secret: what a known one leaves behind, and attacks: on it; both
    empty where none is given. betrayed: how many candidates' texts hold some words of it in a row.
    """

    model: str
    prefix: str
    scanned: int
    threshold: float
    candidates: tuple[ForcedText, ...]
    leaving: Mapping[float, float]
    secret: tuple[SecretStart, ...] = ()
    attacks: tuple[PrefixAttack, ...] = ()
    betrayed: int | None = None

    @property
    def flagged(self) -> tuple[ForcedText, ...]:
        """The candidates whose text repeats a span."""
        return tuple(one for one in self.candidates if one.repeated is not None)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "leaving": {f"{share:g}": score for share, score in self.leaving.items()}}

    def write_json(self, path: Path) -> None:
        """Raises OSError."""
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")


LEAVING = (0.01, 0.002)
"""Shares of the starts whose thresholds a report tells."""


def audit_hidden_text(
    lm: LanguageModel,
    settings: ScanSettings | None = None,
    threshold: float = 0.95,
    length: int = 50,
    secret: str = "",
    sampling: AttackSettings | None = None,
    file: Path | None = None,
    tell: Tell = silent,
) -> HiddenTextReport:
    """Scan a model for hidden text: every token forced, candidates decoded further.

    threshold: on the score of the scan. length: tokens behind a candidate. secret: one that is known, whose traces are then
    told. file: keeps the scan, see `scan`. Raises BadInput, NotEnoughMemory.
    """
    settings = settings or ScanSettings()
    found = scan(lm, settings, file, tell)
    candidates = confirm(lm, found, threshold, length, settings.batch, tell)
    report = HiddenTextReport(
        lm.name,
        settings.prefix,
        len(found.found),
        threshold,
        tuple(candidates),
        {share: found.threshold_leaving(share) for share in LEAVING},
    )
    if not secret:
        return report
    words = (sampling or AttackSettings()).words
    return replace(
        report,
        secret=tuple(secret_starts(lm, found, secret, length)),
        attacks=tuple(attack(lm, secret, sampling, length, tell)),
        betrayed=sum(betrays(one.start + one.text, secret, words) for one in candidates),
    )
