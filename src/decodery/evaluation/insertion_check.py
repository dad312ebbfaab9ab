"""`decodery check` for methods that insert tokens into a text that grows.

Plain decoding is no reference for them. What is tested: what every such decoder owes (the events build the text, nothing is
inserted that never may be, what is given stays as it is and in order, one forward an insertion, nothing depends on the
neighbours), and the law of final texts on tiny models, by enumerating all branches, against the sum over all orders in which a
text can come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from decodery.engine.events import Inserted
from decodery.engine.method import Method
from decodery.engine.settings import Settings
from decodery.evaluation.check_parts import CheckPart, Progress, attempt, dtype_of, random_prompts
from decodery.insertion.insertion_language_models import InsertionLanguageModels
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.testing.goodness import total_variation
from decodery.testing.inserters import InserterScorer, inserting_language_model, random_script, text_law
from decodery.testing.outputs import exact_outputs

PROMPT_TOKENS = 4
TEMPERATURES = (0.0, 1.0)
INSERTIONS = 12
"""Of a text on the user's model at most."""
ROUNDING = 1e-5
"""Total variation that float32 may bring about."""
TINY = ((2, 3, 0), (2, 3, 1), (3, 2, 2))
"""Letters, longest text and seed of the tiny models."""
THRESHOLD = 0.6
LEAVES = 100_000
ALL_GAPS = 1 << 16
"""More gaps than any text has: a choice in two stages without truncation."""


def insertion_parts(
    lm: LanguageModel, method: Method, prompts: int | Sequence[str], seed: int, tell: Progress
) -> list[CheckPart]:
    """All experiments on an insertion language model and on tiny ones."""
    model = lm.network.insertions
    assert model is not None
    given = random_prompts(lm, prompts, seed, PROMPT_TOKENS, model.never_inserted)
    parts = []
    for name, ids in (("text", given), ("filled holes", [_with_holes(lm, prompt) for prompt in given])):
        for temperature in TEMPERATURES:
            label = f"{name} at temperature {temperature:g}"
            parts.append(_grown(lm, method, ids, temperature, seed, label, tell))
    whole = isinstance(method, InsertionLanguageModels)
    if isinstance(method, InsertionLanguageModels):
        free = method.varied(gaps="free", stop_threshold=None, max_steps=None, max_length=None, force_first=None)
        claims = {
            "gap and token drawn together have the model's law": free.varied(gap_top_k=None),
            "a gap and then its token, without truncation, have it too": free.varied(gap_top_k=ALL_GAPS),
        }
        for says, variant in claims.items():
            parts.append(attempt(f"claim: {says}", partial(_enumerated, variant, True), "here"))
        whole = method.gaps == "free" and method.gap_top_k is None
    parts.append(attempt("law of final texts by enumeration", partial(_enumerated, method, whole), "here"))
    return parts


def _with_holes(lm: LanguageModel, prompt: Sequence[int]) -> list[int]:
    """A prompt's tokens as a text with two holes, one of them at its end."""
    model = lm.network.insertions
    assert model is not None
    hole, half = model.hole_token_id, len(prompt) // 2
    text = [token for token in prompt if token not in (hole, model.begin_token_id)]
    begin = [model.begin_token_id] if model.begin_behind_prompt else []
    return [*begin, *text[:half], hole, *text[half:], hole]


def built(reply: Reply) -> tuple[list[int], list[int]]:
    """The tokens that the events build, and the step of each."""
    tokens: list[int] = []
    made_in: list[int] = []
    for event in reply.events:
        if isinstance(event, Inserted):
            tokens.insert(event.offset, event.token)
            made_in.insert(event.offset, event.step)
    return tokens, made_in


def _faults(lm: LanguageModel, prompt: Sequence[int], reply: Reply) -> list[str]:
    model = lm.network.insertions
    assert model is not None
    if reply.error is not None:
        return [f"failed with {type(reply.error).__name__}: {reply.error}"]
    found = []
    tokens, made_in = built(reply)
    inserted = sum(step >= 0 for step in made_in)
    if tokens[: len(reply.token_ids)] != reply.token_ids or made_in != list(reply.stats.step_of):
        found.append("the events do not build the text")
    if {token for token, step in zip(tokens, made_in, strict=True) if step >= 0} & set(model.never_inserted):
        found.append("a token was inserted that never may be")
    holes = [place for place, token in enumerate(prompt) if token == model.hole_token_id]
    between = [t for t in prompt[holes[0] : holes[-1]] if t != model.hole_token_id] if holes else []
    if [token for token, step in zip(tokens, made_in, strict=True) if step < 0] != between:
        found.append("what is given did not stay as it is")
    ended = reply.finish_reason == "length"
    if reply.stats.forwards != inserted + (0 if ended else 1):
        found.append(f"{reply.stats.forwards} forwards for {inserted} insertions")
    return found


def _grown(
    lm: LanguageModel, method: Method, ids: list[list[int]], temperature: float, seed: int, label: str, tell: Progress
) -> CheckPart:
    """What every decoder owes; raises what `generate` raises before work starts."""
    settings: dict[str, Any] = {"temperature": temperature, "max_new_tokens": INSERTIONS}
    seeds = [seed + place for place in range(len(ids))]
    tell(label, 0, len(ids))
    together = lm.generate(ids, method, seed=seeds, **settings)
    faults = []
    for place, (prompt, reply) in enumerate(zip(ids, together, strict=True)):
        tell(label, place + 1, len(ids))
        faults += [f"prompt {place}: {fault}" for fault in _faults(lm, prompt, reply)]
    alone = lm.generate(ids[0], method, seed=seeds[0], **settings)
    if built(alone) != built(together[0]):
        faults.append("prompt 0 alone gives another text than beside the others")
    tokens = sum(len(reply.token_ids) for reply in together)
    forwards = sum(reply.stats.forwards for reply in together)
    numbers = {"prompts": len(ids), "tokens": tokens, "forwards": forwards, "dtype": dtype_of(lm)}
    # In other dtypes sums over another number of rows round otherwise, so the batch may matter.
    passed = not faults or (None if dtype_of(lm) != "float32" and all("alone" in fault for fault in faults) else False)
    said = f"{len(ids)} texts, {tokens} tokens in {forwards} forwards; the events build them, what is given stays"
    return CheckPart(label, passed, "; ".join(faults[:2]) or said, numbers)


def _enumerated(method: Method, promised: bool) -> CheckPart:
    distances = []
    for letters, longest, seed in TINY:
        script = random_script(letters, longest, seed)
        lm = inserting_language_model(InserterScorer(letters, script), stop_threshold=THRESHOLD)
        settings = Settings(temperature=1.0, max_new_tokens=longest, seed=0)
        law = exact_outputs(lm, method, [letters + 1], settings, limit=LEAVES)
        distances.append(total_variation(law, text_law(script, THRESHOLD, longest)))
    said = "the law of final texts is off the sum over all orders by " + ", ".join(f"{d:.2g}" for d in distances)
    if not promised:
        return CheckPart("", None, f"{said}; identity is not promised", {"total_variation": distances})
    return CheckPart("", max(distances) < ROUNDING, f"{said} (rounding: {ROUNDING:g})", {"total_variation": distances})
