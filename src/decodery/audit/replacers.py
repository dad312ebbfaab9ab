"""What stands in place of a token that is taken away: a plausible other one, never the same.

Sources: Zhao and Shan, arXiv 2402.00794 (a masked language model); their repository (parts of speech, the model's own
predictions, any token). Importances are comparable under one replacer only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from decodery.engine.asking import Asking
from decodery.errors import BadInput, MethodUnavailable, ModelNotReadable, reason
from decodery.models.forward import Forward

if TYPE_CHECKING:
    from decodery.models.scorer import Scorer

Ids = NDArray[np.int64]
Drawing = Callable[[int, np.random.Generator], Ids]
"""(chains, chance) -> tokens for every place of a context, [chains, length]."""


class Replacer:
    """A way to propose other tokens for every place of a context."""

    @abstractmethod
    def reading(self, network: Scorer, context: Sequence[int]) -> Asking[Drawing]:
        """Read a context, by forwards of the network if need be, and return what draws tokens for it."""


class UniformReplacer(Replacer):
    """Any other token, each as likely."""

    def reading(self, network: Scorer, context: Sequence[int]) -> Asking[Drawing]:
        yield from ()
        own = np.array(context)

        def draw(chains: int, chance: np.random.Generator) -> Ids:
            drawn = chance.integers(0, network.vocabulary - 1, (chains, len(own)))
            return drawn + (drawn >= own)

        return draw


class InferentialReplacer(Replacer):
    """The token that the network itself finds likeliest there, after those before; the next one where it is the same. The
    first place has nothing before it and keeps its token."""

    def reading(self, network: Scorer, context: Sequence[int]) -> Asking[Drawing]:
        scores = yield Forward(network.new_sequence(), list(context))
        logits = scores.logits[:-1].clone()
        logits.scatter_(1, torch.tensor(context[1:], device=logits.device)[:, None], -torch.inf)
        found = np.array([context[0], *logits.argmax(1).tolist()])

        def draw(chains: int, chance: np.random.Generator) -> Ids:
            return np.tile(found, (chains, 1))

        return draw


class GroupReplacer(Replacer):
    """Any other token of the same group, such as of the same part of speech. groups: of each token its group, [vocabulary]. A
    token that is alone in its group is replaced by any other token."""

    def __init__(self, groups: Sequence[Any]):
        names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
        self.group = np.array([names[name] for name in groups])
        self.members = [np.flatnonzero(self.group == place) for place in range(len(names))]

    def reading(self, network: Scorer, context: Sequence[int]) -> Asking[Drawing]:
        yield from ()
        if len(self.group) != network.vocabulary:
            raise BadInput(
                f"{len(self.group)} tokens have a group, and {network.name} has {network.vocabulary} tokens."
            )
        everything = np.arange(network.vocabulary)

        def draw(chains: int, chance: np.random.Generator) -> Ids:
            columns = []
            for token in context:
                mates = self.members[self.group[token]]
                others = mates if len(mates) > 1 else everything
                columns.append(chance.choice(others[others != token], chains))
            return np.stack(columns, axis=1)

        return draw


def parts_of_speech(spellings: Sequence[str]) -> list[str]:
    """The part of speech of each token, looked at alone, by NLTK's tagger: groups for `GroupReplacer`.

    Raises MethodUnavailable where NLTK or its tagger is missing."""
    try:
        import nltk

        return [nltk.pos_tag([text.strip() or text or " "])[0][1] for text in spellings]
    except (ImportError, LookupError):
        raise MethodUnavailable(
            "parts of speech need NLTK and its tagger: pip install nltk, then nltk.download('averaged_perceptron_tagger_eng')."
        ) from None


class MaskedReplacer(Replacer):
    """What a masked language model finds likeliest where the token is masked, if the network has one token for it; else the
    next likeliest. folder: of the masked model. decode, encode: text of token ids, and ids of text, of the network's
    tokenizer.

    Raises ModelNotReadable where the folder has no masked model, BadInput where a context is too long for it.
    """

    looked_at = 50
    """Candidates that are tried in each place before the token is left as it is."""

    def __init__(self, folder: str, decode: Callable[[list[int]], str], encode: Callable[[str], list[int]]):
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        except (OSError, ValueError) as error:
            raise ModelNotReadable(f"{folder} holds no masked language model: {reason(error)}.") from None
        self.decode, self.encode = decode, encode
        self.most = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)

    def reading(self, network: Scorer, context: Sequence[int]) -> Asking[Drawing]:
        yield from ()
        found = np.array([self._instead(list(context), place) for place in range(len(context))])

        def draw(chains: int, chance: np.random.Generator) -> Ids:
            return np.tile(found, (chains, 1))

        return draw

    def _instead(self, context: list[int], place: int) -> int:
        own = self.decode(context[place : place + 1])
        before, after = self.decode(context[:place]), self.decode(context[place + 1 :])
        space = " " if own[:1].isspace() else ""
        ids = self.tokenizer(f"{before}{space}{self.tokenizer.mask_token}{after}", return_tensors="pt").input_ids
        if ids.shape[1] > self.most:
            raise BadInput(f"the context has {ids.shape[1]} tokens for the masked model, which reads {self.most}.")
        masked = (ids[0] == self.tokenizer.mask_token_id).nonzero()[0, 0]
        with torch.no_grad():
            law = self.model(input_ids=ids).logits[0, masked].clone()
        law[self.tokenizer.all_special_ids] = -torch.inf
        for candidate in law.topk(min(self.looked_at, len(law) - len(self.tokenizer.all_special_ids))).indices.tolist():
            spelled = self.encode(space + str(self.tokenizer.decode([candidate])).strip())
            if len(spelled) == 1 and spelled[0] != context[place]:
                return spelled[0]
        return context[place]
