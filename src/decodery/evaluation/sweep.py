"""Every causal family of the installed transformers, with tiny random weights, against transformers' own greedy answers.

    python -m decodery.evaluation.sweep                 # a line for each family
    python -m decodery.evaluation.sweep --docs docs/models.md
    python -m decodery.evaluation.sweep llama mamba     # these alone

A family is *right* where tokens and log probabilities are those of transformers on every path that takes it, alone, in a
batch and under speculation; *refused* where it is refused with the reason; anything else is a fault of decodery.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery._lazy import torch
from decodery.errors import BadSetting, ModelNotReadable, Refused
from decodery.evaluation.families import OTHER_INPUTS, families, tiny_model
from decodery.testing import LetterTokenizer

PROMPT, TOKENS = 40, 12
SAME = 5e-3
"""Largest difference of log probabilities, in standard deviations of a row's logits, that counts as rounding: recurrent states
are computed in another order for several tokens than for one."""
WIDE = {
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 192,
}
"""The compiled path takes heads of a multiple of 64."""
TIE = 1e-4
"""Where the two best scores are so near, in these deviations, rounding decides which token comes."""
VERDICTS = RIGHT, REFUSED, NOT_BUILT, WRONG, UNTYPED = "right", "refused", "not_built", "wrong", "untyped"
INTRODUCTION = """\
# Models

Whatever `decodery.load` or `decodery.wrap` accepts was compared with transformers' own scores when it was loaded, on the path
that it runs on ([architecture](architecture.md), "Confirmed at load"). What does not agree goes on by a slower path, or is
refused with the reason. This table is made by `python -m decodery.evaluation.sweep --docs docs/models.md`: each causal class
of transformers {version} with tiny random weights in float32, greedy tokens and log probabilities against `generate`, alone,
in a batch, and under speculation.

Of {all} classes {right} are right, {refused} refused with the reason, {wrong} wrong, {untyped} end in an error without a type;
{not_built} cannot be built so small, or not run by transformers itself then. Not tried, since they decode more than text:
{others}.

*Paths*: `eager` packs the rows of many requests into one pass of transformers' modules; `fused` runs the usual block in few
operations; `native` is compiled code, tried in bfloat16 with wider heads; the others run one request at a time through the
model's own cache. *Drafts*: what speculative methods may verify
in one pass. A model whose scores depend on a state takes chains only."""


@dataclass(frozen=True)
class FamilyOutcome:
    """What became of a family. kind: the model type. path: how it runs. drafts: trees, chains, or none. detail: the reason."""

    kind: str
    family: str
    verdict: str
    path: str = ""
    drafts: str = ""
    detail: str = ""


def try_family(kind: str) -> FamilyOutcome:
    """Build a tiny model of a type, and compare what it decodes with what transformers generates."""
    import decodery

    family = families()[kind]
    prompts = [text(PROMPT, 0), text(PROMPT // 3, 1)]
    try:
        model = tiny_model(kind)
        expected = [generated(model, prompt) for prompt in prompts]
    except Exception as error:  # of transformers, not of ours
        return FamilyOutcome(kind, family, NOT_BUILT, detail=_line(error))
    paths = []
    for fast in ("off", "fused"):
        try:
            lm = decodery.wrap(model, LetterTokenizer(256), fast=fast, name=kind)
        except BadSetting:  # the fused path does not take it
            continue
        except ModelNotReadable as error:
            return FamilyOutcome(kind, family, REFUSED, detail=str(error))
        except Exception as error:
            return FamilyOutcome(kind, family, UNTYPED, detail=_line(error))
        paths.append(lm.network.path)
        try:
            fault = _fault(lm, prompts, expected)
        except Exception as error:
            return FamilyOutcome(kind, family, UNTYPED, ", ".join(paths), detail=_line(error))
        if fault:
            return FamilyOutcome(kind, family, WRONG, ", ".join(paths), detail=fault)
        drafts = "chains" if lm.network.chains_only else "trees"
    native, fault = native_fault(kind)
    if fault:
        return FamilyOutcome(kind, family, WRONG, "native", detail=fault)
    return FamilyOutcome(kind, family, RIGHT, ", ".join([*paths, *(["native"] if native else [])]), drafts)


def native_fault(kind: str) -> tuple[bool, str]:
    """Whether the compiled path takes a family, in bfloat16 and with heads of its width, and what it then scores otherwise than
    transformers: where it is more than twice as far from float32 as transformers' own modules are."""
    import copy

    import decodery

    try:
        model = tiny_model(kind, **WIDE).to(torch.bfloat16)
        lm = decodery.wrap(model, LetterTokenizer(256), fast="native", name=kind)
    except (
        Exception
    ):  # such a small model cannot be built of every family, and the path says in many ways that it does not fit
        return False, ""
    prompt = text(3 * PROMPT, 2)
    reply = lm.generate(prompt, method="autoregressive", max_new_tokens=1, logprobs=0, echo=True, ignore_eos=True)
    ours = torch.tensor([entry.raw for entry in reply.prompt_logprobs])

    def said(of: Any) -> Any:
        with torch.inference_mode():
            rows = of(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        return rows[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]

    exact = said(copy.deepcopy(model).float())
    off, usual = float((ours - exact).abs().mean()), float((said(model) - exact).abs().mean())
    return True, f"{off:.2g} from float32 where transformers is {usual:.2g}" if off > 2 * usual else ""


def text(length: int, seed: int) -> list[int]:
    """Token ids that repeat now and then, so that lookups draft."""
    return [(7 * i * i + 3 * i + 5 + 11 * seed) % 250 + 3 for i in range(length)]


def generated(model: Any, prompt: Sequence[int]) -> tuple[list[int], Any]:
    """Greedy tokens of transformers, and the logits [tokens, vocabulary] that led to them."""
    answer = model.generate(
        torch.tensor([list(prompt)]),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return answer.sequences[0, len(prompt) :].tolist(), torch.cat(answer.logits).float()


def _fault(lm: Any, prompts: list[list[int]], expected: list[tuple[list[int], Any]]) -> str:
    """What is other than in transformers; empty where nothing is."""
    alone = [
        lm.generate(p, method="autoregressive", max_new_tokens=TOKENS, logprobs=0, ignore_eos=True) for p in prompts
    ]
    together = lm.generate(prompts, method="autoregressive", max_new_tokens=TOKENS, ignore_eos=True)
    for reply, other, (tokens, logits) in zip(alone, together, expected, strict=True):
        best = logits.topk(2).values
        ties = ((best[:, 0] - best[:, 1]) < TIE * logits.std(-1)).nonzero().flatten().tolist()
        sure = ties[0] if ties else TOKENS
        if reply.token_ids[:sure] != tokens[:sure]:
            return f"tokens {reply.token_ids} where transformers has {tokens}"
        if other.token_ids[:sure] != tokens[:sure]:
            return f"tokens {other.token_ids} in a batch, {tokens} alone"
        rows = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:sure, 0]
        off = (torch.tensor([entry.raw for entry in reply.logprobs[:sure]]) - rows).abs() / logits.std(-1)[:sure]
        if sure and not float(off.max()) <= SAME:
            return f"log probabilities off by {float(off.max()):.2g} of a deviation"
    for method in ("cascade", "prompt-lookup", "token-recycling"):
        try:
            replies = lm.generate(
                [p + p[:9] + p[:8] for p in prompts], method=method, max_new_tokens=TOKENS, ignore_eos=True
            )
        except Refused:
            continue
        plain = lm.generate(
            [p + p[:9] + p[:8] for p in prompts], method="autoregressive", max_new_tokens=TOKENS, ignore_eos=True
        )
        for drafted, reply in zip(replies, plain, strict=True):
            if drafted.error is not None:
                raise drafted.error
            if drafted.token_ids != reply.token_ids:
                return f"tokens {drafted.token_ids} by {method}, {reply.token_ids} plainly"
    return ""


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def page(outcomes: Sequence[FamilyOutcome]) -> str:
    """docs/models.md."""
    import transformers

    count = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in VERDICTS}
    others = ", ".join(f"{kind} ({what})" for kind, what in sorted(OTHER_INPUTS.items()))
    told = INTRODUCTION.format(version=transformers.__version__, all=len(outcomes), others=others, **count)
    lines = [told, "", "| type | class | outcome | paths | drafts |", "|---|---|---|---|---|"]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.kind):
        told = outcome.verdict.replace("_", " ")
        if outcome.detail:
            told += ": " + outcome.detail.rstrip(".").replace("|", "/")
        lines.append(f"| {outcome.kind} | {outcome.family} | {told} | {outcome.path} | {outcome.drafts} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decodery.evaluation.sweep", description="Compare families of models."
    )
    parser.add_argument("kinds", nargs="*", help="model types; all where none is named")
    parser.add_argument("--docs", type=Path, help="write the table to this file")
    given = parser.parse_args(arguments)
    outcomes = []
    for kind in given.kinds or sorted(families()):
        outcomes.append(try_family(kind))
        sys.stdout.write(" ".join(str(part) for part in vars(outcomes[-1]).values() if part) + "\n")
        sys.stdout.flush()
    if given.docs is not None:
        given.docs.write_text(page(outcomes), encoding="utf-8")
    return int(any(outcome.verdict in (WRONG, UNTYPED) for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
