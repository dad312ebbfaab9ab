"""Laws of bytes: prompts that end inside a word, passes a byte, leaked mass, ensembles of models with other tokenizers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.asking import Asking
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.questions import load_questions
from decodery.models.forward import Forward, Rows
from experiments.texts import loaded

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

Vector: TypeAlias = NDArray[np.float64]
EXACT, PLAIN, HEALED = "exact", "tokens of the prompt", "token healing"


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    other: str = "gemma3-270m"
    small: str = "stories-twin"
    cuts: int = 64
    texts: int = 8
    bytes: int = 80
    written: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Cut:
    """A text that ends inside a word, and the byte behind it."""

    text: str
    byte: int


def cuts(settings: Settings) -> list[Cut]:
    """Cuts of many questions: in the middle of words of at least five letters, spread over each text past its first third."""
    found = []
    for question in load_questions(None, per_category=1000):
        text = question.turns[0][:400]
        words = [word for word in re.finditer("[a-z]{5,}", text) if word.start() > len(text) / 3]
        for number, word in enumerate(words[:: max(1, len(words) // 4)][:4]):
            place = word.start() + 2 + number % (len(word[0]) - 3)
            found.append(Cut(text[:place], ord(text[place])))
    return found[: settings.cuts]


def _row(lm: LanguageModel, ids: Sequence[int]) -> Vector:
    """The law of the token after others, [vocabulary]."""

    def ask() -> Asking[Vector]:
        scores = yield Forward(lm.network.new_sequence(), list(ids), logits=Rows.LAST)
        law: Vector = scores.logits[0].double().softmax(0).numpy()
        return law

    found: Vector = lm.run(ask())
    return found


def _bytes_after(vocabulary: ByteVocabulary, law: Vector, said: bytes) -> torch.Tensor:
    """Masses [256] of the byte after `said`, of tokens that begin with it."""
    start, stop = vocabulary.range(said)
    following = vocabulary.next_bytes(start, stop, len(said))
    return torch.from_numpy(np.bincount(following, weights=law[vocabulary.order[start:stop]], minlength=257)[1:])


def boundary(settings: Settings) -> Study:
    lm = loaded(settings.model, dtype="float32")
    vocabulary = ByteVocabulary.of(lm)

    def told(law: torch.Tensor, cut: Cut) -> dict[str, float]:
        law = law / law.sum()
        return {"loss": -math.log(max(float(law[cut.byte]), 1e-12)), "right": float(int(law.argmax()) == cut.byte)}

    def exact(cut: Cut) -> Mapping[str, float]:
        found = lm.next_byte(cut.text)
        return {**told(found.probabilities, cut), "leak": found.leak}

    def plain(cut: Cut) -> Mapping[str, float]:
        return told(_bytes_after(vocabulary, _row(lm, lm.tokenize(cut.text)), b""), cut)

    def healed(cut: Cut) -> Mapping[str, float]:
        ids = lm.tokenize(cut.text)
        said, law = vocabulary.said[ids[-1]], _row(lm, ids[:-1])
        found = _bytes_after(vocabulary, law, said)
        # The last token itself begins with its bytes, too; what comes then is drawn anew.
        own = _bytes_after(vocabulary, _row(lm, ids), b"")
        return told(found + law[ids[-1]] * own / own.sum(), cut)

    return Study(
        "The byte behind prompts that end inside a word of five letters or more.",
        cuts(settings),
        [Arm(PLAIN, plain), Arm(HEALED, healed), Arm(EXACT, exact)],
        (
            Figure("log loss, nats", "loss", form=".3f"),
            Figure("likeliest byte is right", "right", form=".0%", share=True),
            Figure("leaked", "leak", form=".4%"),
        ),
        [
            PublishedClaim(
                "exact laws predict the next byte better than tokens", "log loss, nats", EXACT, PLAIN, False
            ),
            PublishedClaim("exact laws predict it better than token healing", "log loss, nats", EXACT, HEALED, False),
        ],
        "law",
        lm=lm,
    )


def passes(settings: Settings) -> Study:
    lm = loaded(settings.model)
    specs = [
        "autoregressive",
        "byte-level-probabilities(until=boundary)",
        "byte-level-probabilities",
        "byte-level-probabilities(fast=True)",
        f"byte-draft-model(draft={settings.small})",
        f"byte-draft-model(draft={settings.small}, length=8)",
    ]

    def arm(spec: str) -> Arm:
        def measure(cut: Cut) -> Mapping[str, float]:
            asked: Any = {
                "temperature": 1.0,
                "max_new_tokens": settings.written,
                "seed": settings.seed,
                "ignore_eos": True,
            }
            reply = lm.generate(cut.text, method=spec, **asked)
            forwards = reply.stats.models[lm.network.name].forwards
            found = {"bytes": float(len(reply.text.encode())), "forwards": float(forwards)}
            details = reply.stats.details
            if "leak" in details:
                found["leak"] = details["leak"]
            if reply.stats.drafted:
                found |= {"accepted": float(reply.stats.accepted), "drafted": float(reply.stats.drafted)}
            return found

        return Arm(spec, measure)

    return Study(
        f"At most {settings.written} tokens, or bytes of methods in bytes, at temperature 1; prompts end inside a word.",
        cuts(settings)[:: max(1, settings.cuts // settings.texts)],
        [arm(spec) for spec in specs],
        (
            Figure("passes a byte", "forwards", per="bytes"),
            Figure("leaked", "leak", form=".3%"),
            Figure("accepted", "accepted", per="drafted", form=".0%"),
        ),
        [
            PublishedClaim("bytes take one pass each", "passes a byte", "byte-level-probabilities", 1.1, False),
            *(
                PublishedClaim(
                    "drafts verified in bytes save passes", "passes a byte", spec, "byte-level-probabilities", False
                )
                for spec in specs[4:]
            ),
        ],
        "method",
        lm=lm,
    )


def ensembles(settings: Settings) -> Study:
    lm = loaded(settings.model)
    names = {
        settings.model: lm,
        settings.other: lm.companion(settings.other),
        settings.small: lm.companion(settings.small),
    }
    first, second, third = names
    members = {
        first: (first, ()),
        second: (second, ()),
        third: (third, ()),
        f"{first} and {second}": (first, (second,)),
        f"{first} and {third}": (first, (third,)),
        "all three": (first, (second, third)),
    }

    @cache
    def bits(text: str, name: str, others: tuple[str, ...]) -> float:
        host = names[name]
        for other in others:
            host.companions.setdefault(other, names[other])
        prompt, rest = text[:40], text[40:]
        return host.score_bytes(rest, prompt, models=list(others)).bits_per_byte

    def arm(label: str) -> Arm:
        name, others = members[label]

        def measure(text: str) -> Mapping[str, float]:
            own = bits(text, name, others)
            found = {"bits": own}
            if others:
                found["gain"] = sum(bits(text, one, ()) for one in (name, *others)) / (1 + len(others)) - own
            return found

        return Arm(label, measure)

    texts = [
        one.turns[0] for one in load_questions(None, per_category=1000) if len(one.turns[0]) >= 40 + settings.bytes // 2
    ]
    pairs = [label for label, (_, others) in members.items() if others]
    return Study(
        f"Questions of decodery's own, up to {settings.bytes} bytes behind 40 characters; the mean of probabilities.",
        [text[: 40 + settings.bytes] for text in texts[: settings.texts]],
        [arm(label) for label in members],
        (Figure("bits a byte", "bits", form=".3f"), Figure("less than its members' mean", "gain", form=".3f")),
        [
            *(
                PublishedClaim(
                    "an ensemble is better than its members on the average", "less than its members' mean", one, 0.0
                )
                for one in pairs
            ),
            PublishedClaim(
                "an ensemble is better than its best member", "bits a byte", f"{first} and {second}", first, False
            ),
            PublishedClaim(
                "an ensemble is better than its best member", "bits a byte", f"{first} and {second}", second, False
            ),
        ],
        "models",
        lm=lm,
    )


EXPERIMENT = Experiment(
    "byte_level_probabilities",
    "Laws of bytes: boundaries of prompts, passes, ensembles",
    "Phan et al., ICLR 2025, arXiv 2410.09303; Hayase et al., arXiv 2506.14123",
    (
        "experiments.byte_level_probabilities",
        "decodery.bytewise",
        "decodery.byte_laws",
        "decodery.speculative.byte_draft_model",
    ),
    Settings(),
    {"boundary": boundary, "passes": passes, "ensembles": ensembles},
)
