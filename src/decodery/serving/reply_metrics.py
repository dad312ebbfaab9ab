"""What a reply tells of how it was decoded, under vLLM's names where it has some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.engine.events import Drafted, Token

if TYPE_CHECKING:
    from decodery.replies import Reply


def draft_steps(replies: Sequence[Reply]) -> list[tuple[int, int]]:
    """Of each draft that was verified, how many tokens it had and how many of them were accepted."""
    steps: list[tuple[int, int]] = []
    for reply in replies:
        for event in reply.events:
            if isinstance(event, Drafted):
                steps.append((len(event.tokens), 0))
            elif isinstance(event, Token) and event.from_draft and steps:
                steps[-1] = steps[-1][0], steps[-1][1] + 1
    return steps


def speculation(replies: Sequence[Reply], detailed: bool) -> dict[str, Any] | None:
    """vLLM's `metrics.speculative_decoding`; None where nothing was drafted.

    mean_acceptance_length counts the target's own token of each step. acceptance_histogram[a]: steps of which a tokens were
    accepted. num_spec_tokens: the most tokens of a draft. In a tree of drafts each node is a token.
    """
    steps = draft_steps(replies)
    if not steps:
        return None
    drafted, accepted = sum(step[0] for step in steps), sum(step[1] for step in steps)
    counts = Counter(step[1] for step in steps)
    return {
        "mean_acceptance_length": 1 + accepted / len(steps),
        "draft_acceptance_rate": accepted / drafted,
        "acceptance_histogram": [counts[number] for number in range(max(counts) + 1)],
        "num_spec_steps": len(steps),
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": max(step[0] for step in steps),
        "per_step_accepted": [step[1] for step in steps] if detailed else None,
        "per_step_drafted": [step[0] for step in steps] if detailed else None,
    }


def reply_metrics(replies: Sequence[Reply], detail: str) -> dict[str, Any]:
    """What the texts of a request cost and brought, together.

    num_forward: passes of the model, each counted once for every request in it. tokens_per_forward: new tokens by that.
    detail: none, summary or detailed.
    """
    every = list({id(reply.stats): reply.stats for reply in replies}.values())
    forwards, tokens = sum(s.forwards for s in every), sum(s.new_tokens for s in every)
    told: dict[str, Any] = {
        "num_forward": forwards,
        "num_rows": sum(s.rows for s in every),
        "tokens_per_forward": tokens / forwards if forwards else 0.0,
        "time_to_first_token_seconds": min((s.first_token_seconds for s in every if s.new_tokens), default=None),
        "seconds": max(s.seconds for s in every),
        "queued_seconds": max(s.queued_seconds for s in every),
    }
    if detail != "none":
        told["speculative_decoding"] = speculation(replies, detail == "detailed")
    details = [s.details for s in every if s.details]
    if details:
        told["details"] = details
    return told
