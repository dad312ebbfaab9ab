"""Other ways to say what a token was chosen for: leave one out, gradients, attention, chance. All give weights that are not
negative and sum to 1.

Sources: integrated gradients, Sundararajan et al. 2017 (arXiv 1703.01365), from embeddings of zeros; attention rollout, Abnar
and Zuidema 2020 (arXiv 2005.00928); the list is that of Zhao and Shan, arXiv 2402.00794.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from decodery.engine.asking import Asking
from decodery.errors import BadInput, Refused
from decodery.evaluation.intervals import Array
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.models.scorer import Scorer

GRADIENTS = ("integrated-gradients", "gradient-input")
ATTENTION = ("attention-mean", "attention-last", "attention-rollout")
PATH = 50
"""Points between zero and the embeddings at which integrated gradients are taken, and at most so many in a pass."""
AT_ONCE = 10


def shares(values: Array) -> Array:
    """Values that are not negative as shares of their sum; equal ones where all are 0."""
    total = values.sum()
    return np.asarray(values / total if total > 0 else np.full(len(values), 1 / len(values)))


def occlusion(network: Scorer, context: Sequence[int], target: int) -> Asking[Array]:
    """A task for `lm.run`: how much the target's probability falls where a token is left out, [n]; what rises it counts 0."""
    if len(context) < 2:
        raise BadInput("a context needs at least two tokens, for one is left out.")
    ids = list(context)
    listed = [ids, *(ids[:place] + ids[place + 1 :] for place in range(len(ids)))]
    answers = yield tuple(Forward(network.new_sequence(), each, logits=Rows.LAST) for each in listed)
    first, *others = [float(scores.logits[0].double().softmax(0)[target]) for scores in answers]
    return shares(np.maximum(first - np.array(others), 0))


def random_weights(count: int, chance: np.random.Generator) -> Array:
    """The softmax of uniform scores, which is what ReAGent begins with."""
    drawn = np.exp(chance.random(count))
    return np.asarray(drawn / drawn.sum())


class Inside:
    """What can only be asked of the modules of a model: gradients and attention. It works on a copy in float32.

    Raises Refused where the path has none.
    """

    def __init__(self, lm: LanguageModel):
        model = getattr(lm.network, "model", None)
        if not isinstance(model, torch.nn.Module):
            raise Refused(
                f"gradients and attention need the modules of {lm.name}, which its path lacks; load it with fast='off'."
            )
        self.model: Any = copy.deepcopy(model).float().requires_grad_(False).eval()
        self.device = lm.network.device

    def weights(self, name: str, context: Sequence[int], target: int) -> Array:
        """By one of `GRADIENTS` or `ATTENTION`, [n]. Raises BadInput."""
        if name == "integrated-gradients":
            return self.integrated(context, target)
        if name == "gradient-input":
            rows = self._rows(context)
            return shares((self._gradient(rows[None], target)[0] * rows).sum(1).abs().cpu().numpy())
        if name in ATTENTION:
            return self.attention(name, context)
        raise BadInput(f"there is no attribution {name!r}; known: {', '.join((*GRADIENTS, *ATTENTION))}.")

    def integrated(self, context: Sequence[int], target: int, points: int = PATH) -> Array:
        """Integrated gradients of the target's probability, by the midpoint rule. [n], of absolute values."""
        return shares(self.attributions(context, target, points).abs().cpu().numpy())

    def attributions(self, context: Sequence[int], target: int, points: int = PATH) -> Tensor:
        """The signed ones, [n] float32; their sum is the probability less that after embeddings of zeros."""
        rows = self._rows(context)
        total = torch.zeros_like(rows)
        for part in torch.split((torch.arange(points, device=self.device) + 0.5) / points, AT_ONCE):
            total += self._gradient(part[:, None, None] * rows, target).sum(0)
        return (total / points * rows).sum(1)

    def attention(self, name: str, context: Sequence[int]) -> Array:
        """What the last token looks at: over all layers and heads, in the last layer, or through all layers."""
        if self.model.config._attn_implementation != "eager":
            self.model.set_attn_implementation("eager")
        with torch.no_grad():
            found = self.model(self._ids(context), output_attentions=True, use_cache=False).attentions
        layers = torch.stack([layer[0].float().mean(0) for layer in found])  # [layers, n, n]
        if name == "attention-mean":
            row = layers.mean(0)[-1]
        elif name == "attention-last":
            row = layers[-1, -1]
        else:
            passed = torch.eye(len(context), device=layers.device)
            for layer in layers:
                passed = 0.5 * (layer + torch.eye(len(context), device=layers.device)) @ passed
            row = passed[-1]
        return shares(row.double().cpu().numpy())

    def _ids(self, context: Sequence[int]) -> Tensor:
        return torch.tensor([list(context)], device=self.device)

    def _rows(self, context: Sequence[int]) -> Tensor:
        rows: Tensor = self.model.get_input_embeddings()(self._ids(context))[0].detach()
        return rows

    def _gradient(self, rows: Tensor, target: int) -> Tensor:
        """Of the target's probability, at each of some embedded contexts [k, n, width]."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_(True)
            logits = self.model(inputs_embeds=rows, use_cache=False, logits_to_keep=1).logits[:, -1]
            return torch.autograd.grad(logits.float().softmax(-1)[:, target].sum(), rows)[0]
