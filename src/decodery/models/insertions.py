"""Insertion language models: what a decoder must know of one, and how its head is read.

An insertion language model (Patel et al., arXiv 2505.05755) is a bidirectional transformer that scores what is to be inserted
in each gap of a text. Ours are Llama checkpoints with an entry `insertions` in `config.json` and a head in a file of its own.
The head reads the rows that leave the last layer: the published model has no norm there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.errors import ModelNotReadable, reason

ENTRY = "insertions"
"""Where `config.json` of a checkpoint describes how texts are laid out."""
HEAD_FILE = "insertion_head.safetensors"
"""Beside it, the head."""
COMPLETE = 0
"""The class of the stop head that says that nothing is missing."""
TOKEN_IDS = ("class_token_id", "begin_token_id", "hole_token_id")


@dataclass(frozen=True, slots=True)
class Insertions:
    """What an insertion language model's decoders must know.

    class_token_id: the first slot of every text, whose row tells whether something is missing. begin_token_id: the slot that
    stands before the text, or, where `begin_behind_prompt`, between a prompt and its answer. hole_token_id: where a prompt
    holds it, a gap is open; it is no slot itself. reserved: further tokens that are never inserted, such as mask, end and
    padding. stop_threshold: the probability of a complete text at which a text is over. max_length: slots that a text may
    have, all counted.

    head: hidden rows [slots, hidden] that leave the last layer, of a text whose first slot is the class -> logits [slots,
    vocabulary] of what to insert behind each slot, and [2] of the stop head (`COMPLETE` and its opposite), float32.
    """

    class_token_id: int
    begin_token_id: int
    hole_token_id: int
    reserved: tuple[int, ...]
    begin_behind_prompt: bool
    stop_threshold: float
    max_length: int
    head: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def never_inserted(self) -> tuple[int, ...]:
        """All tokens that no gap takes."""
        return tuple(sorted({self.class_token_id, self.begin_token_id, self.hole_token_id, *self.reserved}))

    def completeness(self, stop: Tensor) -> float:
        """The probability that nothing is missing, of the stop head's logits [2]."""
        return float(stop.double().softmax(-1)[COMPLETE])

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path) -> Insertions | None:
        """The description in a checkpoint's configuration, with its head from the folder; None where it is that of another
        model.

        Raises ModelNotReadable where the entry is malformed, or the head is missing or does not fit.
        """
        entry = config.get(ENTRY)
        if entry is None:
            return None
        try:
            size, width = int(config["vocab_size"]), int(config["hidden_size"])
            first, begin, hole = (int(entry[name]) for name in TOKEN_IDS)
            reserved = tuple(int(token) for token in entry.get("reserved_token_ids", ()))
            behind, threshold = bool(entry.get("begin_behind_prompt", False)), float(entry.get("stop_threshold", 0.9))
            longest = int(entry.get("max_length") or config.get("max_position_embeddings", 1024))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelNotReadable(f"the entry {ENTRY} of config.json cannot be read: {error!r}.") from error
        if not all(0 <= token < size for token in (first, begin, hole, *reserved)) or len({first, begin, hole}) < 3:
            raise ModelNotReadable(
                f"the entry {ENTRY} of config.json names tokens outside 0..{size - 1}, or one twice."
            )
        if not 0 < threshold <= 1 or longest < 3:
            raise ModelNotReadable(
                f"the entry {ENTRY} of config.json needs a stop_threshold above 0 and at most 1, and a max_length from 3 on."
            )
        return cls(first, begin, hole, reserved, behind, threshold, longest, read_head(folder, width, size))


class InsertionHead(nn.Module):
    """The head of our checkpoints: see `Insertions.head`. The stop head is a small network on the first row."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.tokens = nn.Linear(width, vocabulary, bias=False)
        self.stop = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [..., slots, vocabulary] and [..., 2], float32, of rows [..., slots, width]."""
        return self.tokens(rows).float(), self.stop(rows[..., 0, :]).float()


def read_head(folder: Path, width: int, vocabulary: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The head of a checkpoint, in float32. Raises ModelNotReadable where its file is missing or of another shape."""
    from safetensors.torch import load_file

    path = folder / HEAD_FILE
    if not path.exists():
        raise ModelNotReadable(f"{folder} describes an insertion language model but lacks its head, {HEAD_FILE}.")
    head = InsertionHead(width, vocabulary)
    try:
        head.load_state_dict({name: weight.float() for name, weight in load_file(str(path)).items()})
    except Exception as error:  # whatever is wrong with the file
        raise ModelNotReadable(f"{path} is no head of this model: {reason(error)}.") from error
    head.requires_grad_(False)

    def scores(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            logits, stop = head.to(rows.device)(rows.float())
        return logits, stop

    return scores
