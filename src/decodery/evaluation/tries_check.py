"""`decodery check` for methods that decide among tries: are these the very samples of the method that draws them, and is the
text that is given the one that they decide for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.evaluation.check_parts import CheckPart, Progress, dtype_of
from decodery.search.tries import Try, TryingMethod

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.replies import Reply
    from decodery.sampling.chance import Source

PROMPTS, TOKENS = 4, 16
"""Prompts that are tried, and tokens of each text."""
NEAR = 1e-3
"""Scores that are closer than this may rank either way: sums over other row counts round otherwise."""


def tries_parts(
    lm: LanguageModel, method: TryingMethod, prompts: Sequence[Sequence[int]], seed: int, chance: Source, tell: Progress
) -> list[CheckPart]:
    """The experiment on the first prompts, at a temperature of 1."""
    chosen = prompts[:PROMPTS]
    same = tried = right = 0
    for place, prompt in enumerate(chosen):
        tell("tries", place, len(chosen))
        settings = Settings(max_new_tokens=TOKENS, temperature=1.0, seed=seed + place, chance=chance)
        reply = lm.generate(
            list(prompt), method, seed=settings.seed, max_new_tokens=TOKENS, temperature=1.0, chance=chance
        )
        request = Request(lm, prompt, settings, together=True)
        samples = _samples(lm, method, request, [told["sample"] for told in reply.stats.details["tries"]])
        tried += len(samples)
        same += sum(
            told["text"] == sample.text and told["tokens"] == len(sample.token_ids)
            for told, sample in zip(reply.stats.details["tries"], samples, strict=True)
        )
        right += _decided(lm, method, request, samples, reply)
    tell("tries", len(chosen), len(chosen))
    numbers: dict[str, Any] = {"prompts": len(chosen), "tries": tried, "dtype": dtype_of(lm)}
    inner = method.inner.spec()
    parts = [
        (
            "tries are samples",
            f"{same} of {tried} tries are the samples of {inner}",
            same == tried,
            {"identical": same},
        ),
        (
            "the decision",
            f"{right} of {len(chosen)} texts that are given are those that samples of {inner}, scored anew, decide for",
            right == len(chosen),
            {"decided": right},
        ),
    ]
    return [_part(lm, name, said, passed, {**numbers, **more}) for name, said, passed, more in parts]


def _part(lm: LanguageModel, name: str, said: str, passed: bool, numbers: dict[str, Any]) -> CheckPart:
    if dtype_of(lm) == "float32":
        return CheckPart(name, passed, said, numbers)
    return CheckPart(name, None, f"{said}; this is promised in float32 only, and this is {dtype_of(lm)}", numbers)


def _samples(lm: LanguageModel, method: TryingMethod, request: Request, numbers: Sequence[int]) -> list[Reply]:
    """What the method that draws the tries gives by itself, of these numbers."""
    own = request.settings
    given = lm.generate(
        list(request.prompt),
        method.inner,
        n=method.samples,
        seed=own.seed,
        max_new_tokens=own.max_new_tokens,
        temperature=own.temperature,
        chance=own.chance,
    )
    samples = given if isinstance(given, list) else [given]
    return [samples[number] for number in numbers]


def _decided(lm: LanguageModel, method: TryingMethod, request: Request, samples: Sequence[Reply], reply: Reply) -> bool:
    """Whether the reply is what these samples decide for, or as good."""
    scored = lm.score([sample.token_ids for sample in samples], prompt=list(request.prompt))
    tries = []
    for number, (sample, one) in enumerate(zip(samples, scored, strict=True)):
        output = request.output.fork()
        output.commit(sample.token_ids, ())
        tries.append(Try(number, output, one.log_probability))
    ranked = method.ranked(request, tries)
    best = ranked[0][1]
    return any(entry.output.new_tokens == reply.token_ids and score >= best - NEAR for entry, score, _ in ranked)
