"""`decodery check` for methods that fill a canvas.

Plain decoding is no reference for them. What is tested: what every decoder of canvases owes (each position once, no reserved
token, nothing depends on the neighbours), and what a method claims of itself: that it is another decoder, canvas and order of
commits, or that its law is the model's joint law, which is decided by enumerating all branches on a tabular denoiser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from decodery.diffusion.base import Claim, DiffusionMethod
from decodery.engine.events import Unmasked
from decodery.engine.method import Method
from decodery.engine.settings import Settings
from decodery.evaluation.check_parts import CheckPart, Progress, attempt, dtype_of, random_prompts
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.sampling.structured.constraint import constraint_of
from decodery.testing.denoisers import TabularDenoiser, denoising_language_model
from decodery.testing.goodness import total_variation
from decodery.testing.outputs import exact_outputs

PROMPT_TOKENS = 8
TEMPERATURES = (0.0, 1.0)
ROUNDING = 1e-5
"""Total variation that float32 may bring about."""
ORACLES = ((3, 3, 0), (3, 3, 1), (4, 2, 2))
"""Length, vocabulary and seed of the tabular denoisers."""
LEAVES = 100_000
LANGUAGE = "a(b|c)*a|b+"
"""What canvases are held to, over the letters of the tabular denoisers."""


def canvas_parts(
    lm: LanguageModel, method: Method, prompts: int | Sequence[str], seed: int, tell: Progress
) -> list[CheckPart]:
    """All experiments on a masked-diffusion model and on tabular denoisers."""
    model = lm.network.masked
    assert model is not None
    ids = random_prompts(lm, prompts, seed, PROMPT_TOKENS, model.reserved)
    parts = []
    for temperature in TEMPERATURES:
        label = f"canvas at temperature {temperature:g}"
        parts.append(canvases(lm, method, ids, temperature, seed, label, tell))
    claims: tuple[Claim, ...] = method.claims() if isinstance(method, DiffusionMethod) else ()
    for place, claim in enumerate(claims):
        tell("claims", place, len(claims))
        name = f"claim: {claim.says}"
        if claim.same_as is not None:
            experiment = partial(_same, lm, claim.method, claim.same_as, ids, claim.temperature, seed)
        else:
            experiment = partial(_enumerated, claim.method, True)
        parts.append(attempt(name, experiment, "here"))
    tell("claims", len(claims), len(claims))
    promised = method.exactness.same_law
    parts.append(attempt("constraint by enumeration", partial(_held, method), "here"))
    parts.append(attempt("law by enumeration", partial(_enumerated, method, promised), "here"))
    return parts


def canvases(
    lm: LanguageModel, method: Method, ids: list[list[int]], temperature: float, seed: int, label: str, tell: Progress
) -> CheckPart:
    """What every decoder owes; raises what `generate` raises before work starts."""
    model = lm.network.masked
    assert model is not None
    seeds = [seed + place for place in range(len(ids))]
    tell(label, 0, len(ids))
    together = lm.generate(ids, method, temperature=temperature, seed=seeds)
    faults = []
    for place, (prompt, reply) in enumerate(zip(ids, together, strict=True)):
        tell(label, place + 1, len(ids))
        if reply.error is not None:
            faults.append(f"prompt {place} failed with {type(reply.error).__name__}: {reply.error}")
            continue
        filled = [offset for event in reply.events if isinstance(event, Unmasked) for offset in event.offsets]
        if len(filled) != len(set(filled)):
            faults.append(f"prompt {place}: a position was filled twice")
        if set(reply.token_ids) & set(model.reserved):
            faults.append(f"prompt {place}: a reserved token was committed")
        if place == 0 and outcome(lm.generate(prompt, method, temperature=temperature, seed=seeds[0])) != outcome(
            reply
        ):
            faults.append("prompt 0 alone gives another canvas than beside the others")
    steps = sum(max(reply.stats.step_of, default=-1) + 1 for reply in together)
    forwards = sum(reply.stats.forwards for reply in together)
    tokens = sum(len(reply.token_ids) for reply in together)
    numbers: dict[str, Any] = {
        "prompts": len(ids),
        "tokens": tokens,
        "steps": steps,
        "forwards": forwards,
        "token_forwards": sum(reply.stats.rows for reply in together),
        "dtype": dtype_of(lm),
    }
    # In other dtypes sums over another number of rows round otherwise, so the batch may matter.
    passed = not faults or (None if dtype_of(lm) != "float32" and all("alone" in fault for fault in faults) else False)
    said = f"{len(ids)} canvases, {tokens} tokens in {forwards} forwards; each position once, nothing reserved"
    return CheckPart(label, passed, "; ".join(faults[:2]) or said, numbers)


def outcome(reply: Reply) -> tuple[dict[int, int], list[int]]:
    """What stands where, and since which step."""
    tokens: dict[int, int] = {}
    for event in reply.events:
        if isinstance(event, Unmasked):
            tokens.update(zip(event.offsets, event.tokens, strict=True))
    return tokens, list(reply.stats.step_of)


def _order(reply: Reply) -> tuple[dict[int, int], list[list[int]]]:
    """The canvas, and the groups of positions in the order in which they were filled: steps that fill nothing do not count."""
    tokens, steps = outcome(reply)
    return tokens, [[o for o, s in enumerate(steps) if s == step] for step in sorted(set(steps))]


def _same(
    lm: LanguageModel, method: Method, other: Method, ids: list[list[int]], temperature: float, seed: int
) -> CheckPart:
    one, two = (
        lm.generate(ids, given, temperature=temperature, seed=[seed + i for i in range(len(ids))])
        for given in (method, other)
    )
    different = [place for place, (a, b) in enumerate(zip(one, two, strict=True)) if _order(a) != _order(b)]
    costs = [sum(reply.stats.forwards for reply in replies) for replies in (one, two)]
    numbers = {"prompts": len(ids), "identical": len(ids) - len(different), "forwards": costs[0], "reference": costs[1]}
    said = f"{len(ids) - len(different)} of {len(ids)} canvases and orders are those of {other.spec()}"
    said += f"; {costs[0]} forwards, there {costs[1]}"
    passed: bool | None = not different
    if different and dtype_of(lm) != "float32":
        passed, said = None, f"{said}; identity is promised in float32 only, and this is {dtype_of(lm)}"
    return CheckPart("", passed, said, numbers)


def _enumerated(method: Method, promised: bool) -> CheckPart:
    distances = []
    for length, vocabulary, seed in ORACLES:
        oracle = TabularDenoiser.random(length, vocabulary, seed)
        lm = denoising_language_model(oracle)
        try:
            law = exact_outputs(
                lm, method, [0, 1], Settings(temperature=1.0, max_new_tokens=length, seed=0), limit=LEAVES
            )
        except RuntimeError as error:
            if "leaves" not in str(error):
                raise
            return CheckPart("", None, f"not enumerated: {error}")
        distances.append(total_variation(law, oracle.law()))
    said = "the law is off the joint law of tabular denoisers by " + ", ".join(f"{d:.2g}" for d in distances)
    if not promised:
        return CheckPart("", None, f"{said}; identity is not promised", {"total_variation": distances})
    return CheckPart("", max(distances) < ROUNDING, f"{said} (rounding: {ROUNDING:g})", {"total_variation": distances})


def _held(method: Method) -> CheckPart:
    """Whether all that a method writes under a constraint keeps to it, by all branches on a tabular denoiser."""
    length, vocabulary, seed = ORACLES[0]
    lm = denoising_language_model(TabularDenoiser.random(length, vocabulary, seed))
    constraint = constraint_of("structured_outputs", {"regex": LANGUAGE})
    settings = Settings(temperature=1.0, max_new_tokens=length, seed=0, structured_outputs=constraint)
    law = exact_outputs(lm, method, [0, 1], settings, limit=LEAVES)
    texts = {lm.tokenizer.decode(tokens): mass for tokens, mass in law.items()}
    outside = sum(mass for text, mass in texts.items() if not re.fullmatch(LANGUAGE, text))
    said = f"of {len(texts)} texts that come under a constraint, {'all keep to it' if not outside else 'some do not'}"
    return CheckPart("", outside == 0, said, {"texts": len(texts), "outside": outside})
