"""How likely an any-order model finds tokens given others: the joint density of one forward, and what the draft would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.any_order.order import DecodingOrder
from decodery.engine.host import Host
from decodery.errors import BadPrompt, Refused
from decodery.models.kinds import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.task import Asking


def joint_density(lm: Host, tokens: Sequence[int], hidden: Sequence[int], joint: bool = True) -> Asking[Tensor]:
    """A coroutine for `LanguageModel.run`: log probabilities [hidden] float64, natural, of these tokens in ascending position;
    their sum is the log density of all of them given the others, by one forward.

    tokens: ids of the whole text. hidden: the positions asked for. joint: each is given the hidden ones before it; otherwise
    none of them, as in a draft. Of the raw scores without reserved tokens. Raises Refused where the model is of another kind,
    BadPrompt where positions are none of the text's, a token is reserved, or the text is too long.
    """
    model, count = lm.network.masked, len(tokens)
    if model is None or Kind.ANY_ORDER not in lm.network.kinds:
        raise Refused(f"{lm.network.name} is {lm.network.kinds.words}, and a joint density needs an any-order one.")
    if not hidden or not {*hidden} <= {*range(count)} or len({*hidden}) < len(hidden):
        raise BadPrompt(f"hidden positions are different ones of 0 to {count - 1}, at least one, not {list(hidden)}.")
    if {*tokens} & {*model.reserved}:
        raise BadPrompt("a text of a reserved token, such as the mask, has no density.")
    if count > lm.network.context:
        raise BadPrompt(f"the text has {count} tokens, but {lm.network.name} has a context of {lm.network.context}.")
    return _density(lm, list(tokens), sorted(hidden), model.mask_token_id, list(model.reserved), joint)


def _density(
    lm: Host, tokens: list[int], hidden: list[int], mask: int, reserved: list[int], joint: bool
) -> Asking[Tensor]:
    order = DecodingOrder(sorted({*range(len(tokens))} - {*hidden}), hidden)
    by_rank = [tokens[position] for position in order.positions]
    ranks = range(order.given, len(tokens))
    scores = yield order.forward(lm.network.new_sequence(), by_rank, ranks, mask, joint)
    law = scores.logits.double().clone()
    law[:, reserved] = -torch.inf
    wanted = torch.tensor(by_rank[order.given :], device=law.device)
    found: Tensor = law.log_softmax(1).gather(1, wanted[:, None])[:, 0]
    return found
