"""What a model predicts of a text: a label by the tokens that name it, or how it goes on; and gradients of that.

The forms are those of the causal instantiation of GradObstinate (arXiv 2307.12507), which was made for classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from decodery.audit.baselines import Inside
from decodery.engine.asking import Asking
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array
from decodery.models.forward import Forward

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel


@dataclass(frozen=True)
class TextQuestion:
    """What is asked about a text. before, after: what stands around it. labels: words of which one is predicted, each by its
    first token; none: the model goes on. continued: how many tokens it goes on greedily, all of which are the prediction."""

    before: str = ""
    after: str = ""
    labels: tuple[str, ...] = ()
    continued: int = 1

    def __post_init__(self) -> None:
        if self.continued < 1:
            raise BadInput(f"a continuation has at least one token, not {self.continued}.")
        if len(self.labels) == 1:
            raise BadInput("one label is no choice; give at least two, or none.")
        if self.labels and self.continued > 1:
            raise BadInput("a label is one token; give labels, or how many tokens are continued.")


@dataclass(frozen=True)
class Prediction:
    """What was predicted. ids: what was read. chosen: [rows], of each row the outcome: the number of a label, or a token. law:
    [rows, outcomes] float64, natural logarithms of probabilities."""

    ids: tuple[int, ...]
    chosen: tuple[int, ...]
    law: Array

    def same(self, law: Array) -> bool:
        """Whether a law of another text predicts the same."""
        return tuple(law.argmax(1).tolist()) == self.chosen

    def divergence(self, law: Array) -> float:
        """KL(this ‖ another law), nats, the sum over rows."""
        return float((np.exp(self.law) * (self.law - law)).sum())

    def change(self, law: Array) -> float:
        """How much higher the logarithm of what was predicted is under another law, nats."""
        rows = np.arange(len(self.chosen))
        return float((law[rows, self.chosen] - self.law[rows, self.chosen]).sum())


class Predictor:
    """Asks a model a question about texts. Raises BadInput where labels begin with the same token."""

    def __init__(self, lm: LanguageModel, question: TextQuestion):
        self.lm, self.question = lm, question
        encoded = [lm.encode(label) for label in question.labels]
        if not all(encoded) or len({ids[0] for ids in encoded}) < len(encoded):
            raise BadInput(f"{lm.name} cannot tell the labels {', '.join(question.labels)} by their first tokens.")
        self.columns = [ids[0] for ids in encoded]

    def whole(self, text: str) -> str:
        """The text with what stands around it."""
        return f"{self.question.before}{text}{self.question.after}"

    def ids(self, text: str) -> list[int]:
        """Of the whole."""
        return list(self.lm.tokenize(self.whole(text)))

    def predict(self, text: str) -> Prediction:
        """What the model predicts of a text. Raises BadInput where the text leaves no room in its context."""
        ids, continued = self.ids(text), self.question.continued
        if len(ids) + continued > self.lm.network.context:
            raise BadInput(
                f"the text has {len(ids)} tokens with what is around it, and {self.lm.name} has a context of "
                f"{self.lm.network.context}."
            )
        goes_on: tuple[int, ...] = ()
        for _ in range(continued - 1):
            goes_on = (*goes_on, int(self._read([[*ids, *goes_on]], 1)[0].argmax()))
        law = self.laws([ids], goes_on)[0]
        return Prediction(tuple(ids), tuple(law.argmax(1).tolist()), law)

    def says(self, prediction: Prediction) -> str:
        """What was predicted, in words."""
        if self.columns:
            return self.question.labels[prediction.chosen[0]]
        return str(self.lm.tokenizer.decode(list(prediction.chosen)))

    def laws(self, listed: Sequence[Sequence[int]], goes_on: Sequence[int]) -> list[Array]:
        """Of each of several texts its law, in one pass. goes_on: what is predicted but for its last token."""
        return self._read([[*ids, *goes_on] for ids in listed], len(goes_on) + 1)

    def laws_like(self, prediction: Prediction, listed: Sequence[Sequence[int]]) -> list[Array]:
        """Laws of other texts that can be compared with a prediction."""
        return self.laws(listed, self.goes_on(prediction))

    def goes_on(self, prediction: Prediction) -> tuple[int, ...]:
        """The tokens that are predicted but for the last one; none of a label."""
        return prediction.chosen[:-1]

    def _read(self, listed: Sequence[Sequence[int]], rows: int) -> list[Array]:
        network = self.lm.network

        def asking() -> Asking[list[Array]]:
            answers = yield tuple(
                Forward(network.new_sequence(), list(ids), logits=range(len(ids) - rows, len(ids))) for ids in listed
            )
            return [self._law(scores.logits.double()).cpu().numpy() for scores in answers]

        found: list[Array] = self.lm.run(asking())
        return found

    def _law(self, logits: Tensor) -> Tensor:
        return (logits[:, self.columns] if self.columns else logits).log_softmax(-1)


class PredictionGradient:
    """Gradients of what a model predicts, by its modules in float32. Raises Refused where the path has none."""

    def __init__(self, predictor: Predictor):
        self.predictor, inside = predictor, Inside(predictor.lm)
        self.model, self.device = inside.model, inside.device

    def rows(self, ids: Sequence[int]) -> Tensor:
        """What enters the first layer for token ids, [n, width]."""
        rows: Tensor = self.model.get_input_embeddings()(torch.tensor(list(ids), device=self.device)).detach()
        return rows

    def law(self, rows: Tensor, goes_on: Sequence[int]) -> Tensor:
        """The law [rows, outcomes] after embedded tokens [n, width], which keeps track of gradients."""
        whole = torch.cat([rows, self.rows(goes_on)]) if goes_on else rows
        logits = self.model(inputs_embeds=whole[None], use_cache=False, logits_to_keep=len(goes_on) + 1).logits[0]
        return self.predictor._law(logits.float())
