"""Neighbours of a text: the text with one token replaced by what a masked language model would put there.

Source: Mattern et al., Membership Inference Attacks against Language Models via Neighbourhood Comparison, arXiv 2305.18462,
section 3: dropout on the token's embedding in place of a mask, so that substitutes keep near its meaning.
"""

from __future__ import annotations

import numpy as np
import torch

from decodery.errors import BadInput, ModelNotReadable, reason


class MaskedNeighbours:
    """folder: of a masked language model and its tokenizer, such as RoBERTa's. Raises ModelNotReadable where there is
    none."""

    def __init__(self, folder: str):
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        except (OSError, ValueError) as error:
            raise ModelNotReadable(f"{folder} holds no masked language model: {reason(error)}.") from None
        self.most = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)

    def of(self, text: str, count: int, candidates: int, dropout: float, draws: np.random.Generator) -> list[str]:
        """The likeliest neighbours of a text, at most `count`, likeliest first.

        candidates: likeliest tokens looked at in each place. dropout: share of the token's embedding that is dropped there.
        draws: chance of what is dropped. Raises BadInput where the text is too long for the masked model.
        """
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        length = ids.shape[1]
        if length > self.most:
            raise BadInput(f"a text has {length} tokens for the masked model, which reads {self.most}; cut the texts.")
        special = set(self.tokenizer.all_special_ids)
        places = [place for place, token in enumerate(ids[0].tolist()) if token not in special]
        if not places:
            return []
        with torch.no_grad():
            rows = self.model.get_input_embeddings()(ids).repeat(len(places), 1, 1)
            kept = torch.from_numpy(draws.random((len(places), rows.shape[2])) >= dropout)
            which = torch.arange(len(places))
            rows[which, places] = rows[which, places] * kept / (1 - dropout)
            mask = torch.ones(len(places), length, dtype=torch.long)
            laws = self.model(inputs_embeds=rows, attention_mask=mask).logits[which, places].double().softmax(-1)
        own = laws[which, ids[0, places]]
        laws[:, sorted(special)] = 0.0
        laws[which, ids[0, places]] = 0.0
        # How likely a substitute is among all that are not the token itself.
        best = (laws / (1 - own).clamp_min(1e-6)[:, None]).topk(min(candidates, laws.shape[1]))
        ranked = sorted(
            (-float(value), place, int(token))
            for place, values, tokens in zip(places, best.values, best.indices, strict=True)
            for value, token in zip(values, tokens, strict=True)
            if value > 0
        )
        return [self._with(ids[0].tolist(), place, token) for _, place, token in ranked[:count]]

    def _with(self, ids: list[int], place: int, token: int) -> str:
        changed = [*ids[:place], token, *ids[place + 1 :]]
        return str(self.tokenizer.decode(changed, skip_special_tokens=True))
