"""The exact law of what a method of any-order models writes, iteration by iteration, with each forward made once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from decodery.any_order.base import AnyOrderMethod
from decodery.any_order.joint_density import joint_density
from decodery.any_order.window import OrderedWindow
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Scores
from decodery.sampling.noise import Chance
from decodery.testing import enumerate_outcomes

Written = tuple[int, ...]
HOLE = -1


class Iterations:
    """text: token ids, HOLE where one is to be found. What a method keeps between forwards does not matter to its law, and is
    not kept here, so that a forward is what it asks for alone."""

    def __init__(self, lm: LanguageModel, text: Sequence[int], **settings: Any):
        assert lm.diffusion is not None
        self.lm, self.holes = lm, [place for place, token in enumerate(text) if token == HOLE]
        self.ids = [lm.diffusion.mask_token_id if token == HOLE else token for token in text]
        self.settings = Settings(**{"temperature": 1.0, "max_new_tokens": 64, "seed": 0, **settings})
        self._known: dict[Any, Scores] = {}

    def request(self, chance: Chance | None = None) -> Request:
        first = self.holes[0]
        request = Request(self.lm, self.ids[:first], self.settings)
        request.template = tuple(self.ids[first:])
        if chance is not None:
            request.noise = request.law.chance = chance
        return request

    def law(self, method: AnyOrderMethod) -> dict[Written, float]:
        """What stands in the holes in the end."""
        laws: dict[Written, float] = {(): 1.0}
        done: dict[Written, float] = {}
        while laws:
            state = min(laws, key=len)  # all that leads to it has been seen
            mass = laws.pop(state)
            for more, share in enumerate_outcomes(lambda chance, at=state: self.one(method, at, chance)).items():
                whole = (*state, *more)
                kept = done if len(whole) == len(self.holes) else laws
                kept[whole] = kept.get(whole, 0.0) + mass * share
        return done

    def one(self, method: AnyOrderMethod, state: Written, chance: Chance) -> Written:
        """What one iteration writes behind so many decided holes."""
        request = self.request(chance)
        window = OrderedWindow(request, len(request.template), cached=False)
        if state:
            window.decide(state, torch.zeros(len(state), 1))
        coroutine, answer = method.fill_in(request, window), None
        try:
            while True:
                forward = coroutine.send(answer)  # type: ignore[arg-type]
                if window.done > len(state):
                    coroutine.close()
                    break
                answer = self._answer(forward)
        except StopIteration:
            pass
        return tuple(window.canvas.tokens[place] for place in self.holes[len(state) : window.done])

    def _answer(self, forward: Forward) -> Scores:
        attend: Any = forward.attend
        key = tuple(forward.tokens), tuple(forward.row_positions()), attend.numpy().tobytes()
        if key not in self._known:
            [self._known[key]] = self.lm.network.run([forward])
        else:
            forward.sequence.write(forward.written_slots(), list(forward.tokens), forward.row_positions())
        return self._known[key]

    def joint(self, joint: bool = True) -> dict[Written, float]:
        """The model's law of the holes, by the density of everything that can stand there. joint: False: as if the holes did
        not see each other."""
        assert self.lm.diffusion is not None
        tokens = [t for t in range(self.lm.network.vocabulary) if t not in self.lm.diffusion.reserved]
        outcomes = list(itertools.product(tokens, repeat=len(self.holes)))
        asks = []
        for outcome in outcomes:
            text = list(self.ids)
            for place, token in zip(self.holes, outcome, strict=True):
                text[place] = token
            asks.append(joint_density(self.lm, text, self.holes, joint))
        return {outcome: float(found.sum().exp()) for outcome, found in zip(outcomes, self.lm.run(asks), strict=True)}
