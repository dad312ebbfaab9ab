"""`decodery check` for methods that decode in bytes: on languages whose texts are enumerated, has the output the exact law of
bytes?

Plain decoding has another law there, since the prompt ends inside of tokens; how far off it is says that the languages can
tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from decodery.bytewise.byte_level_probabilities import ByteLevelProbabilities
from decodery.bytewise.mixture import GEOMETRIC
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.settings import Settings
from decodery.evaluation.byte_languages import ByteLanguage, PairTokenizer, spaced, two_letters
from decodery.evaluation.check_parts import CheckPart, Progress, attempt
from decodery.testing.goodness import goodness_of_fit, total_variation
from decodery.testing.outputs import exact_outputs, sampled_outputs

if TYPE_CHECKING:
    from decodery.engine.method import Method
    from decodery.testing import SmallLanguageModel

LANGUAGES = {"two letters": (two_letters, 3, "a"), "look-ahead": (spaced, 3, "a ")}
"""Name -> languages, the most signs of their texts, and a prompt that ends inside of tokens."""
ROUNDING = 1e-5
MOST_SAMPLES = 4_000
"""Requests that are decoded, all together; a byte costs more than a token."""
LEAVES = 3_000
PLAIN = "autoregressive"


def language_and_model(
    name: str, named: Sequence[str] = (), seed: int = 0
) -> tuple[ByteLanguage, SmallLanguageModel, list[int]]:
    """A language, its model with a companion for drafts and ensembles (another law over the same texts, in other tokens), and
    the prompt. named: the names of the companion."""
    make, length, prompt = LANGUAGES[name]
    language = make(length, seed)
    lm = language.model()
    companion = other_tokens(name, seed + 1).model("other")
    for wanted in named or ("other",):
        lm.companions[wanted] = companion
    return language, lm, language.tokenizer.encode(prompt)


def other_tokens(name: str, seed: int) -> ByteLanguage:
    """Another law over the texts of a language, in the tokens of single bytes."""
    _, length, _ = LANGUAGES[name]
    plain = name == "two letters"
    return ByteLanguage("ab" if plain else "a\u00e9 ", length, PairTokenizer("ab", [], byte_level=not plain), seed)


def expected(method: Method) -> dict[str, Mapping[bytes, float]]:
    """The law that the method should have behind the prompt of each language. The further models of an ensemble are of the
    other tokens each."""
    found: dict[str, Mapping[bytes, float]] = {}
    for name, (make, length, prompt) in LANGUAGES.items():
        laws, weights, geometric = [make(length, 0).law()], [1.0], False
        if isinstance(method, ByteLevelProbabilities):
            laws += [other_tokens(name, 1).law()] * len(method.named())
            weights, geometric = method.shares(), method.mean == GEOMETRIC
        found[name] = mixed(laws, weights, prompt.encode(), geometric)
    return found


def as_bytes(lm: SmallLanguageModel, law: Mapping[tuple[int, ...], float]) -> dict[bytes, float]:
    """A law of tokens as one of what they say."""
    found: dict[bytes, float] = {}
    for tokens, mass in law.items():
        said = ByteVocabulary.of(lm).bytes_of(tokens)
        found[said] = found.get(said, 0.0) + mass
    return found


def bytes_parts(
    method: Method,
    samples: int,
    significance: float,
    seed: int,
    tell: Progress,
    exact: Mapping[str, Mapping[bytes, float]],
) -> list[CheckPart]:
    """The experiments. exact: the law that the method should have behind the prompt of each language."""
    parts = []
    for place, name in enumerate(exact):
        tell("law of bytes by enumeration", place, len(exact))
        parts.append(
            attempt(
                f"law of bytes by enumeration, {name}", partial(_enumerated, method, name, seed, exact[name]), "there"
            )
        )
    tell("law of bytes by enumeration", len(exact), len(exact))
    for name in exact:
        experiment = partial(
            _sampled,
            method,
            name,
            min(samples, MOST_SAMPLES) // len(exact),
            significance / len(exact),
            seed,
            tell,
            exact[name],
        )
        parts.append(attempt(f"law of bytes by sampling, {name}", experiment, "there"))
    return parts


def _settings(seed: int) -> Settings:
    return Settings(temperature=1.0, max_new_tokens=16, seed=seed)


def _enumerated(method: Method, name: str, seed: int, exact: Mapping[bytes, float]) -> CheckPart:
    _, lm, prompt = language_and_model(name, companions(method))
    try:
        law = as_bytes(lm, exact_outputs(lm, method, prompt, _settings(seed), limit=LEAVES))
    except RuntimeError:
        return CheckPart("", None, f"not enumerated: it takes more than {LEAVES} runs")
    plain = as_bytes(lm, exact_outputs(lm, PLAIN, prompt, _settings(seed), limit=LEAVES))
    distance, other = total_variation(law, exact), total_variation(plain, exact)
    said = f"texts are off their exact law by {distance:.2g} (rounding: {ROUNDING:g}), those of plain decoding by {other:.2g}"
    return CheckPart("", distance < ROUNDING, said, {"total_variation": distance, "plain": other, "outcomes": len(law)})


def _sampled(
    method: Method,
    name: str,
    samples: int,
    significance: float,
    seed: int,
    tell: Progress,
    exact: Mapping[bytes, float],
) -> CheckPart:
    _, lm, prompt = language_and_model(name, companions(method))
    drawn = sampled_outputs(
        lm, method, prompt, _settings(seed), samples, lambda done, of: tell(f"bytes, {name}", done, of)
    )
    counts: Counter[bytes] = Counter()
    for text, count in as_bytes(lm, drawn).items():
        counts[text] += int(count)
    fit = goodness_of_fit(counts, exact)
    said = f"{samples} samples: chi-square {fit.statistic:.1f} on {fit.degrees} degrees, p = {fit.p_value:.3g}"
    return CheckPart(
        "", fit.p_value >= significance, f"{said} (refuted below {significance:g})", dataclasses.asdict(fit)
    )


def mixed(
    laws: Sequence[Mapping[bytes, float]], weights: Sequence[float], beginning: bytes, geometric: bool = False
) -> dict[bytes, float]:
    """The law of texts behind a beginning, drawn byte by byte from the mean of several models' next bytes, of their
    probabilities or (geometric) of their logarithms. laws: of whole texts."""

    def starting(law: Mapping[bytes, float], text: bytes) -> float:
        return sum(mass for one, mass in law.items() if one.startswith(text))

    def mean(shares: Sequence[float]) -> float:
        if geometric:
            return float(math.prod(share**weight for share, weight in zip(shares, weights, strict=True)))
        return math.fsum(share * weight for share, weight in zip(shares, weights, strict=True))

    found: dict[bytes, float] = {}
    growing = {beginning: 1.0}
    while growing:
        longer: dict[bytes, float] = {}
        for text, mass in growing.items():
            whole = [starting(law, text) for law in laws]
            end = mean([law.get(text, 0.0) / own for law, own in zip(laws, whole, strict=True)])
            following = {one[len(text)] for law in laws for one in law if one.startswith(text) and len(one) > len(text)}
            shares = {}
            for byte in following:
                more = text + bytes([byte])
                shares[more] = mean([starting(law, more) / own for law, own in zip(laws, whole, strict=True)])
            total = end + sum(shares.values())
            if end > 0:
                found[text[len(beginning) :]] = mass * end / total
            longer.update({more: mass * share / total for more, share in shares.items() if share > 0})
        growing = longer
    return found


def companions(method: Method) -> list[str]:
    """The names of the other models that a method in bytes asks for."""
    return [
        word.strip() for given in ("models", "draft") for word in getattr(method, given, "").split("+") if word.strip()
    ]
