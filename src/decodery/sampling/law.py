"""The processed law: from the raw scores of a position to the distribution its token is drawn from.

A law is an ordered list of steps (`sampling/steps/`); the order is data and is reported with the result. Each step sees the
prefix of the row it works on, so a law means the same for a node of a draft tree as for the next token of plain decoding.
Everything that a user sets (temperature, truncation, penalties, biases, own processors) lives here, and every verifier and
drafter works on what comes out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodery.errors import ScoresNotNumbers
from decodery.sampling.forbidding import FORBIDDEN, WIDE, few, on_cpu
from decodery.sampling.law_settings import LawSettings as LawSettings
from decodery.sampling.noise import Chance, Noise, Stage
from decodery.sampling.prefix import Prefix
from decodery.sampling.steps import StatefulStep, Step, default_order
from decodery.sampling.top import likeliest

DEFAULT_ORDER = default_order()
"""The order of transformers' `generate`, but for the bias, which comes before the penalties there, and typical_p, which comes
after the other truncations there (preset `hf`)."""

States = Mapping[str, Any]
"""Name of a stateful step -> its state."""


class Law:
    """The processed law of one text.

    settings: see `LawSettings`; prompt: the prompt's token ids; stop_ids: tokens that end the output; special_ids: those that
    are no text, such as what stands between the turns of a chat; chance: of steps that draw. The committed output is told by
    `observe`; the tokens of a draft path are given per row. `fork` costs a copy of the token list.
    """

    def __init__(
        self,
        settings: LawSettings,
        prompt: Sequence[int],
        stop_ids: Sequence[int] = (),
        chance: Chance | None = None,
        special_ids: Sequence[int] = (),
    ):
        self.settings = settings
        self.greedy = settings.temperature == 0
        self.stop_ids, self.special_ids = list(stop_ids), special_ids
        self.tokens = list(prompt)
        """Prompt and committed tokens."""
        self.prompt_length = len(self.tokens)
        """How many of them are the prompt's."""
        self.seen: dict[int, int] = dict.fromkeys(self.tokens, 0)
        """Token -> occurrences in the output; 0 for tokens of the prompt alone."""
        self._apply(settings.active_steps())
        self.chance: Chance = Noise(0) if chance is None else chance
        """Of steps that draw."""
        self._states: States = {step.name: step.begin(self.tokens) for step in self._stateful}
        self._passed: dict[tuple[int, ...], tuple[States, Tensor]] = {}
        """Path -> states before its row and the finished scores [vocabulary] there: what the states after it follow from."""
        self._decisions: dict[tuple[str, int, int], bool] = {}
        self._follows = True
        self._foreseen: tuple[Tensor, Callable[[], Tensor | None]] | None = None
        """A row, and what gives its processed scores."""

    @property
    def order(self) -> tuple[str, ...]:
        """The steps that are switched on, in order."""
        return tuple(step.name for step in self.steps)

    def observe(self, token: int, row: Float[Tensor, "vocabulary"] | None = None) -> None:
        """A token was committed. row: [vocabulary] the raw scores that it was taken from; needed where the law is
        `stateful`."""
        if self.stateful:
            if () not in self._passed:
                if row is None:
                    raise ValueError("a law with a state needs the row that a token was taken from")
                self.scores(row)
            self._states = self._states_after((token,))
            self._passed = {path[1:]: passed for path, passed in self._passed.items() if path[:1] == (token,)}
        self._foreseen = None
        self.tokens.append(token)
        self.seen[token] = self.seen.get(token, 0) + 1
        if self._decisions:
            self._decisions = {key: value for key, value in self._decisions.items() if key[1] >= len(self.tokens)}

    def fork(self, chance: Chance | None = None) -> Law:
        """Another law that has seen the same, and goes its own way from here. chance: of the fork; None: the same."""
        other = copy.copy(self)
        other.tokens, other.seen = list(self.tokens), dict(self.seen)
        other._passed, other._decisions = dict(self._passed), dict(self._decisions)
        other._foreseen = None
        if chance is not None:
            other.chance = chance
        return other

    def without(self, step: str) -> Law:
        """This law but for a step, which somebody else applies."""
        other = self.fork()
        other._apply([one for one in self.steps if one.name != step])
        return other

    def _apply(self, steps: list[Step]) -> None:
        """Make it the law of these steps."""
        self.steps = steps
        self.uses_prefix = any(step.uses_prefix for step in steps)
        """Whether the tokens of a path matter to its rows."""
        self._stateful = [step for step in steps if isinstance(step, StatefulStep)]
        self.guides = [step for step in steps if step.guides]
        """Steps that know something of what comes before there are scores."""
        self._only_forbids = bool(steps) and all(step.only_forbids for step in steps)
        self.stateful = bool(self._stateful)
        """Whether steps carry a state along the text. Then `observe` needs the row that each token was taken from."""

    @property
    def drafting(self) -> Law:
        """This law for rows of another network, such as a draft model's. States of steps stay those of the committed text: they
        follow from the target's rows alone."""
        if not self.stateful:
            return self
        other = copy.copy(self)
        other._follows = False
        return other

    # The law of a row

    def scores(self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> Float[Tensor, "vocabulary"]:
        """Processed scores [vocabulary] float32 of a raw row, after the committed tokens and then `path`.

        Forbidden tokens are at minus infinity. The input is not changed. Where the law is stateful, the rows along the path
        must have been asked for before.
        """
        if not self.steps:
            return row.float()
        if self._foreseen is not None and not path and _same(self._foreseen[0], row):
            foreseen = self._foreseen[1]()
            if foreseen is not None:
                return foreseen
        prefix = self.prefix(path)
        rows = row[None] if self.steps[0].makes_rows else row[None].clone()
        scores = processed(rows, self.steps, [prefix])[0]
        if self.stateful and self._follows:
            self._passed[tuple(path)] = self._states_after(path), scores
        return scores

    def prefix(self, path: Sequence[int] = ()) -> Prefix:
        """What stands before the row after the committed tokens and `path`."""
        return Prefix(self, path, self._states_after(path))

    def log_probabilities(
        self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()
    ) -> Float[Tensor, "vocabulary"]:
        """Log probabilities [vocabulary] float32 of the processed law. In greedy decoding a point mass."""
        if self.greedy:
            return self.probabilities(row, path).log()
        return self._checked(torch.log_softmax(self.scores(row, path).float(), dim=-1), row, path)

    def probabilities(self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> Float[Tensor, "vocabulary"]:
        """Probabilities [vocabulary] float32 of the processed law: what its tokens are drawn from. In greedy decoding a point
        mass."""
        if self.greedy:
            certain = torch.zeros_like(row, dtype=torch.float32)
            certain[self.likeliest(row, path)] = 1.0
            return certain
        ids, shares = self.kept(row, path)
        if ids is None:
            return shares
        found = np.zeros(len(row), np.float32)
        found[ids] = shares.numpy()
        return torch.from_numpy(found)

    def kept(
        self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()
    ) -> tuple[Int64[np.ndarray, "n"] | None, Float[Tensor, "n"]]:
        """The processed law of few tokens: their ids [n], rising, and probabilities [n] float32; all others have none. None and
        the probabilities of all [vocabulary] where the tokens are many."""
        scores = self.scores(row, path)
        ids = few(scores, FORBIDDEN) if on_cpu(scores) and scores.shape[0] >= WIDE else None
        left = scores if ids is None else torch.from_numpy(scores.numpy()[ids])
        return ids, self._checked(torch.softmax(left, dim=-1), row, path)

    def _checked(self, law: Tensor, row: Tensor, path: Sequence[int]) -> Tensor:
        # One score that is no number, or none that is above minus infinity, spoils the sum that all are divided by.
        if math.isnan(float(law[0])):
            raise self._complaint(row, path)
        return law

    def foresee(self, row: Tensor, scores: Callable[[], Tensor | None]) -> None:
        """The next row that is asked about is likely this one; `scores` gives its processed scores [vocabulary] float32,
        computed together with those of others, or None where that failed. Forgotten with the next token."""
        self._foreseen = row, scores

    def likeliest(self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> int:
        """The token of the highest processed score, the lowest id among equals. Raises ScoresNotNumbers where there is none."""
        if self._only_forbids:  # where the likeliest token may come, nobody needs to look at the others
            token = likeliest(row)
            prefix, score = self.prefix(path), float(row[token])
            if score > FORBIDDEN and all(step.allows(prefix, token) for step in self.steps):
                return token
        scores = self.scores(row, path)
        token = likeliest(scores)
        self.check(float(scores[token]), row, path)
        return token

    def check(self, highest: float, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> None:
        """Raise ScoresNotNumbers unless the highest of a row's scores, for which one that is no number passes, is a score."""
        if math.isnan(highest) or highest == FORBIDDEN:
            raise self._complaint(row, path)

    def forced(self, path: Sequence[int] = ()) -> Sequence[int]:
        """Tokens that come after `path` whatever the scores are, as far as the steps of the law know."""
        found = (step.forced(self._place(path)) for step in self.guides)
        return next((tokens for tokens in found if tokens), ())

    def may_follow(self, token: int, path: Sequence[int] = ()) -> bool:
        """Whether the steps of the law know nothing against a token after `path`, whatever its score is."""
        return all(step.may_follow(self._place(path), token) for step in self.guides)

    def _place(self, path: Sequence[int]) -> Prefix:
        """Of a path whose rows nobody has seen yet."""
        return Prefix(self, path, self._states)

    # What steps ask

    def decision(self, step: str, position: int, index: int, probability: float) -> bool:
        """A random decision of a step for a position; the same whenever it is asked for. Steps reach it by `Prefix.accept`."""
        key = (step, position, index)
        if key not in self._decisions:
            masses = torch.tensor([1 - probability, probability], dtype=torch.float64)
            self._decisions[key] = bool(self.chance.choose(masses, position, Stage.LAW, (step, index)))
        return self._decisions[key]

    def _states_after(self, path: Sequence[int]) -> States:
        if not self.stateful or not path or not self._follows:
            return self._states
        *before, token = path
        if tuple(before) not in self._passed:
            raise ValueError("a law with a state was asked for a path whose earlier rows it has not seen")
        states, scores = self._passed[tuple(before)]
        return {step.name: step.advance(states[step.name], scores, token) for step in self._stateful}

    # What is wrong with a row

    def _complaint(self, row: Float[Tensor, "vocabulary"], path: Sequence[int]) -> ScoresNotNumbers:
        """What to say of a row, by the step that spoilt it."""
        scores, prefix = row.float().clone()[None], self.prefix(path)
        what = _fault(scores[0])
        if what is not None:
            return ScoresNotNumbers(f"the network's scores of token {prefix.new_tokens + 1} {what}", raw=True)
        for step in self.steps:
            scores = step.apply(scores, [prefix])
            what = _fault(scores[0])
            if what is not None:
                return ScoresNotNumbers(
                    f"the scores of token {prefix.new_tokens + 1} {what} after the step {step.name} of the settings"
                )
        return ScoresNotNumbers(
            f"the scores of token {prefix.new_tokens + 1} have no sum, since one of them is infinite"
        )


def processed(rows: Float[Tensor, "n vocabulary"], steps: Sequence[Step], prefixes: Sequence[Prefix]) -> Tensor:
    """Processed scores [n, vocabulary] float32 of raw rows, each behind its prefix. The rows are changed in place."""
    scores = rows.float()
    for step in steps:
        scores = step.apply(scores, prefixes)
    return scores


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two rows are the same memory."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.dtype == other.dtype


def _fault(scores: Float[Tensor, "vocabulary"]) -> str | None:
    if bool(scores.isnan().any()):
        return "are not numbers"
    highest = float(scores.max())
    if highest == FORBIDDEN:
        return "forbid every token"
    return "are infinite" if math.isinf(highest) else None
