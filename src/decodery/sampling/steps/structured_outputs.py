"""The output keeps to a JSON schema, a regular expression, a grammar or a choice (vLLM's structured_outputs, OpenAI's
response_format), or to a rule of code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.errors import ConstraintFailed
from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.settings import setting
from decodery.sampling.steps.base import Step
from decodery.sampling.structured.constraint import Constraint
from decodery.sampling.structured.setting import Constraints

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix
    from decodery.sampling.structured.grammars import Compiled


@dataclass(frozen=True)
class StructuredOutputs(Step):
    """Forbids every token after which the output can no longer become what is wanted, and allows the end where it is that.

    This is masking, token by token: each output is valid, but their law is not the model's law among the valid texts, since a
    beginning is not weighed by how likely it comes to a valid end. An output that `max_new_tokens` cuts off is a beginning of a
    valid one.
    """

    structured_outputs: Constraint | Compiled | None = setting(  # noqa: RUF009 (a dataclass field like the others)
        None,
        Constraints(),
        'What the output must be: {"json": a schema}, {"json_object": true}, {"regex": …}, {"choice": [texts]} or '
        '{"grammar": Lark or GBNF}, and {"rule": a registered one}; OpenAI\'s response_format; in Python a type or functions, '
        "too.",
        aliases=("response_format",),
        option=("--structured-outputs",),
        metavar="JSON",
    )

    name = "structured_outputs"
    place = 30
    reads_prefix = True
    guides = only_forbids = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        compiled = self._compiled
        for row, prefix in zip(rows, prefixes, strict=True):
            output = _output(prefix)
            if prefix.drafted and compiled.broken(output):
                continue  # a draft that is rejected; nothing is asked of what would follow it
            if not prefix.stop_ids:
                self._check_goes_on(output)
            stops = row[prefix.stop_ids]
            ends = compiled.forbid(row, output)
            row[prefix.stop_ids] = stops if ends else FORBIDDEN
        return rows

    def allows(self, prefix: Prefix, token: int) -> bool:
        compiled, output = self._compiled, _output(prefix)
        if prefix.drafted and compiled.broken(output):
            return True
        if not prefix.stop_ids:
            self._check_goes_on(output)
        return compiled.may_end(output) if token in prefix.stop_ids else compiled.allows(output, token)

    def _check_goes_on(self, output: tuple[int, ...]) -> None:
        """Raise ConstraintFailed where nothing may follow an output that no token ends."""
        allowed, ends = self._compiled.allowed(output)
        if ends and not bool(allowed.any()):
            raise ConstraintFailed(
                "structured_outputs is complete, and no token ends the output; give stop_token_ids, or leave ignore_eos out."
            )

    def forced(self, prefix: Prefix) -> Sequence[int]:
        return self._compiled.forced(_output(prefix))

    def may_follow(self, prefix: Prefix, token: int) -> bool:
        compiled, output = self._compiled, _output(prefix)
        return compiled.may_end(output) if token in prefix.stop_ids else compiled.may_follow(output, token)

    @property
    def _compiled(self) -> Compiled:
        compiled = self.structured_outputs
        if compiled is None or isinstance(compiled, Constraint):
            raise ValueError("structured_outputs needs the tokens of a model, which a law by itself does not have")
        return compiled


def _output(prefix: Prefix) -> tuple[int, ...]:
    """The tokens that are not the prompt's."""
    tokens = prefix.tokens
    return tuple(tokens[len(tokens) - prefix.new_tokens :])
