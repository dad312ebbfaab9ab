"""`decodery check`: decide by experiment whether a method keeps what it declares.

Two kinds of evidence. On the user's model: greedy output against plain decoding, token by token, and sampled output too where
the same tokens are promised; of methods that decide among tries, whether these are the samples that they are said to be. On
tiny models whose law is known: sampled output against that law, exactly by enumeration, and with real noise by a chi-square
test. What is tried follows from the method's `Exactness`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decodery.bytewise.byte_level_probabilities import ByteLevelProbabilities
from decodery.constraints.awrs import AdaptiveWeightedRejection
from decodery.constraints.grammar_aligned_decoding import GrammarAlignedDecoding
from decodery.engine.method import Method, refusal
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.errors import BadSetting, Refused
from decodery.evaluation.aligned_check import aligned_parts
from decodery.evaluation.any_order_check import any_order_parts
from decodery.evaluation.bytes_check import bytes_parts, expected
from decodery.evaluation.check_parts import CheckPart, Progress, dtype_of
from decodery.evaluation.diffusion_check import canvas_parts
from decodery.evaluation.insertion_check import insertion_parts
from decodery.evaluation.sampled_law import law_parts
from decodery.evaluation.set_check import set_parts
from decodery.evaluation.tries_check import tries_parts
from decodery.evaluation.weights_check import weights_parts
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.models.kinds import Kind
from decodery.replies import Reply
from decodery.sampling.chance import Source
from decodery.search.tries import TryingMethod
from decodery.speculative.byte_draft_model import ByteDraftModel

PLAIN = "autoregressive"
TIE = 1e-4
"""Where the two highest scores, or a draw and the border of its token, are closer than this in float32, either may win: sums
over other row counts round otherwise."""
PLAIN_BATCH = 8
"""Prompts whose plain output is decoded together; a difference is judged against plain decoding alone."""


@dataclass(frozen=True)
class CheckReport:
    """What the experiments say of a method's promise. passed: none of them refutes it."""

    method: str
    exactness: str
    passed: bool
    parts: list[CheckPart]
    model: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "exactness": self.exactness,
            "passed": self.passed,
            "model": self.model,
            "parts": [
                {"name": part.name, "passed": part.passed, "detail": part.detail, **part.numbers} for part in self.parts
            ],
        }


def check_method(
    lm: LanguageModel,
    method: str | Method,
    *,
    prompts: int | Sequence[str] = 20,
    max_new_tokens: int = 64,
    samples: int = 20_000,
    significance: float = 0.001,
    seed: int = 0,
    chance: str | Source = "addressed",
    on_progress: Progress | None = None,
) -> CheckReport:
    """Test a method's promise.

    lm: the model that greedy identity is tested on; only float32 promises it, in other dtypes the part has no verdict.
    prompts: how many of the shipped questions, or own prompts. samples: how many requests the tests with real noise
    decode, all together. On models of other kinds other experiments are made (`diffusion_check`, `any_order_check`,
    `insertion_check`). significance: how
    often a sound method may be refuted by chance, over all those tests together. chance: where random draws come from, as in
    the settings; whether the samples of a source that spreads them are spread is decided, too.
    Raises MethodUnavailable, Refused or BadParameter where the method cannot run on `lm` at all.
    """
    if samples < 100:
        raise BadSetting(f"samples must be at least 100 to say anything, not {samples}.")
    if not 0 < significance < 1:
        raise BadSetting(f"significance must lie between 0 and 1, not {significance!r}.")
    source = Settings.of({"chance": chance}, lm.network.vocabulary).chance
    reason = None if source.spread else source.refuses_samples(1024)
    if reason is not None:
        raise Refused(f"nothing can be checked with chance {source.name}, because {reason}.")
    chosen = as_method(method)
    tell = on_progress or (lambda label, done, total: None)
    if Kind.ANY_ORDER in lm.network.kinds:
        parts = any_order_parts(lm, chosen, prompts, seed, tell)
    elif Kind.INSERTIONS in lm.network.kinds:
        parts = insertion_parts(lm, chosen, prompts, seed, tell)
    elif Kind.NEXT_TOKEN not in lm.network.kinds:
        parts = canvas_parts(lm, chosen, prompts, seed, tell)
    else:
        ids = _prompts(lm, prompts, max_new_tokens)
        # Of those that decide among texts that differ there is nothing to see greedily, and no law is promised.
        if isinstance(chosen, TryingMethod) and not chosen.exactness.same_law:
            parts = tries_parts(lm, chosen, ids, seed, source, tell)
        elif isinstance(chosen, ByteLevelProbabilities | ByteDraftModel):
            parts = bytes_parts(chosen, samples, significance, seed, tell, expected(chosen))
        elif isinstance(chosen, AdaptiveWeightedRejection):
            parts = weights_parts(chosen, seed, tell)
        elif isinstance(chosen, GrammarAlignedDecoding):
            parts = aligned_parts(chosen, significance, seed, tell)
        else:
            parts = _usual_parts(lm, chosen, ids, max_new_tokens, samples, significance, seed, tell, source)
    passed = all(part.passed is not False for part in parts)
    return CheckReport(chosen.spec(), str(chosen.exactness), passed, parts, lm.name)


def _usual_parts(
    lm: LanguageModel,
    method: Method,
    ids: list[list[int]],
    max_new_tokens: int,
    samples: int,
    significance: float,
    seed: int,
    tell: Progress,
    chance: Source,
) -> list[CheckPart]:
    """Identity and law, as far as each is promised."""
    parts = _identity_parts(lm, method, "greedy", ids, Settings(max_new_tokens=max_new_tokens), tell)
    if method.exactness.same_tokens:
        sampling = Settings(max_new_tokens=max_new_tokens, temperature=1.0, seed=seed, chance=chance)
        reason = refusal(method, sampling)
        if reason is None:
            parts += _identity_parts(lm, method, "sampled", ids, sampling, tell)
        else:
            parts.append(CheckPart("sampled identity", None, f"does not run here: {reason}"))
    if method.arrangement is not None and not method.together:
        parts += set_parts(lm, method, tell)
    return parts + law_parts(lm, method, samples, significance, seed, tell, chance)


def _prompts(lm: LanguageModel, prompts: int | Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts, as the model is used to seeing them; the end of those that are too long."""
    texts: Sequence[str]
    if isinstance(prompts, int):
        from decodery.evaluation.questions import load_questions

        if prompts < 1:
            raise BadSetting(f"prompts must be at least 1, not {prompts}.")
        questions = load_questions(None)
        # Every category comes first once, then every category again.
        ranked = sorted(questions, key=lambda q: [o.id for o in questions if o.category == q.category].index(q.id))
        texts = [turn for place in (0, 1) for q in ranked for turn in q.turns[place : place + 1]][:prompts]
    else:
        texts = list(prompts)
    most = lm.network.context - max_new_tokens
    if most < 1:
        raise BadSetting(f"max_new_tokens={max_new_tokens} leaves no room in a context of {lm.network.context}.")
    chat = getattr(lm.tokenizer, "chat_template", None)
    ids = [lm.tokenize([{"role": "user", "content": text}] if chat else text) for text in texts]
    return [tokens[-most:] for tokens in ids]


def _identity_parts(
    lm: LanguageModel, method: Method, kind: str, prompts: list[list[int]], settings: Settings, tell: Progress
) -> list[CheckPart]:
    """Outputs against plain decoding's under the same settings, prompt i with seed + i. kind: of decoding, in a word."""
    seed = settings.seed or 0
    shared: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "chance": settings.chance,
    }
    plain: list[Reply] = []
    label = f"plain {kind} decoding"
    for start in range(0, len(prompts), PLAIN_BATCH):
        tell(label, start, len(prompts))
        batch = prompts[start : start + PLAIN_BATCH]
        plain += lm.generate(batch, method=PLAIN, seed=[seed + start + i for i in range(len(batch))], **shared)
    tell(label, len(prompts), len(prompts))
    parts = []
    for label in ("cold", "hot"):
        name = f"{kind} identity, {label}"
        replies = []
        for place, prompt in enumerate(prompts):
            tell(name, place, len(prompts))
            if label == "cold":
                lm.forget(_SESSION)
            replies.append(lm.generate(prompt, method=method, session=_SESSION, seed=seed + place, **shared))
        tell(name, len(prompts), len(prompts))
        parts.append(_compare(lm, method, name, prompts, plain, replies, settings.chance))
    lm.forget(_SESSION)
    return parts


_SESSION = "decodery check"


def _compare(
    lm: LanguageModel,
    method: Method,
    name: str,
    prompts: list[list[int]],
    plain: list[Reply],
    replies: list[Reply],
    chance: Source,
) -> CheckPart:
    differences, greedy = [], name.startswith("greedy")
    for place, (prompt, reference, reply) in enumerate(zip(prompts, plain, replies, strict=True)):
        if reply.token_ids == reference.token_ids:
            continue
        # The reference was decoded in a batch; what counts is plain decoding of this prompt alone.
        count = max(len(reply.token_ids), len(reference.token_ids))
        temperature = 0.0 if greedy else 1.0
        settings = Settings(max_new_tokens=count, temperature=temperature, seed=reply.seed, chance=chance)
        drawn: dict[str, Any] = {"temperature": temperature, "seed": reply.seed, "chance": chance}
        alone = lm.generate(prompt, method=PLAIN, max_new_tokens=count, **drawn)
        plain[place] = alone
        if reply.token_ids != alone.token_ids:
            differences.append(_difference(lm, place, prompt, alone.token_ids, reply.token_ids, settings))
    tokens = sum(len(reply.token_ids) for reply in replies)
    rounds = sum(reply.stats.rounds for reply in replies)
    numbers: dict[str, Any] = {
        "prompts": len(prompts),
        "tokens": tokens,
        "identical": len(prompts) - len(differences),
        "dtype": dtype_of(lm),
        "acceptance_length": tokens / rounds if rounds else 0.0,
        "differences": differences,
    }
    said = f"{numbers['identical']} of {len(prompts)} outputs identical, {tokens} tokens"
    said += f" at {numbers['acceptance_length']:.2f} per round"
    for difference in differences[:1]:
        said += (
            f"; the first to differ is prompt {difference['prompt']} at token {difference['token']}, where the two highest "
            f"scores are {difference['top_2_gap']:.2g} apart"
        )
    passed: bool | None
    if not method.exactness.lossless:
        passed, said = None, f"{said}; no identity is promised"
    elif numbers["dtype"] != "float32":
        passed, said = None, f"{said}; identity is promised in float32 only, and this is {numbers['dtype']}"
    else:
        passed = all(difference["tie"] for difference in differences)
        if passed and differences:
            said += "; they differ only where scores tie up to rounding"
    return CheckPart(name, passed, said, numbers)


def _difference(
    lm: LanguageModel, place: int, prompt: list[int], expected: list[int], found: list[int], settings: Settings
) -> dict[str, Any]:
    """Where an output leaves plain decoding's, and how close the decision was there.

    A greedy decision ties where the two highest scores are close, a sampled one where the draw would have been the other if
    the one token had a little less probability and the other a little more.
    """
    common = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    at = min(len(expected), len(found)) if common is None else common
    sequence = lm.network.new_sequence()
    [scores] = lm.network.run([Forward(sequence, [*prompt, *expected[:at]], logits=Rows.LAST)])
    top = scores.logits[0].topk(2)
    gap = float(top.values[0] - top.values[1])
    token = found[at] if at < len(found) else None
    plain = expected[at] if at < len(expected) else None
    tie = gap < TIE and token in top.indices.tolist()
    if settings.temperature > 0 and token is not None and plain is not None:
        law = scores.logits[0].double().softmax(-1)
        moved = min(TIE, float(law[plain]))
        law[plain] -= moved
        law[token] += moved
        request = Request(lm, [*prompt, *expected[:at]], settings)
        tie = request.draw(law.log().float()) == token
    return {
        "prompt": place,
        "token": at,
        "expected": plain,
        "found": token,
        "top_2_gap": gap,
        "tie": tie,
    }
