"""Ways to answer a question, and the probe that chooses among them from the hidden row of the question's last token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.errors import BadInput
from decodery.models import catalogue

FILE, CARD = "probe.safetensors", "card.json"
CLASSES = ("easy", "normal", "hard")
"""In the order of the probe's outputs."""
TIES = ("normal", "hard", "easy")
"""Of classes that are equally likely the first of these is taken."""


@dataclass(frozen=True)
class Strategy:
    """suffix: text behind the question. temperature: of its law. share: of the token budget."""

    suffix: str
    temperature: float
    share: float

    def budget(self, tokens: int) -> int:
        """New tokens at most, where the request allows so many; at least one."""
        return max(1, int(self.share * tokens))


@dataclass(frozen=True)
class Policy:
    """The strategies by class, and the text around them. preamble: what stands before every question. stop: ends an answer."""

    easy: Strategy = Strategy("\nAnswer:", 0.5, 0.4)
    normal: Strategy = Strategy("\nThink:", 0.8, 1.0)
    hard: Strategy = Strategy("\nPlan:", 0.4, 0.5)
    preamble: str = ""
    stop: str = "\n\n"

    def of(self, name: str) -> Strategy:
        """The strategy of a class."""
        strategy: Strategy = getattr(self, name)
        return strategy


PREAMBLE = """Question:
What is the second of these words: lamp, road, door?
Think: lamp is first, road is second, door is third.
Answer: road

Question:
What is 4 plus 5?
Plan: add 4 and 5
Answer: 9

Question:
What is the opposite of "inside"?
Plan: name the opposite of inside
Answer: outside

Question:
Lucy has 6 plums and gets 2 more. How many plums does Lucy have?
Think: 6 + 2 = 8
Answer: 8

Question:
Repeat the word "spoon".
Plan: copy spoon
Answer: spoon

Question:
What is the capital of India?
Think: India's capital is New Delhi.
Answer: New Delhi

Question:
Which number comes after 15?
Think: 15 + 1 = 16
Answer: 16

Question:
What is 3 times 12?
Plan: multiply 3 and 12
Answer: 36

Question:
"""
"""Worked examples of thoughts and plans; the question comes on a line of its own, so that its first token is that of any text.
Were some of them answered at once, a small model would leave out answers behind its thoughts."""


def choose(probabilities: Tensor, fallback: float = 0.0) -> str:
    """The likeliest class of probabilities [3]; the normal one where none is as likely as `fallback`."""
    best = max(probabilities.tolist())
    if best < fallback:
        return "normal"
    return next(name for name in TIES if float(probabilities[CLASSES.index(name)]) == best)


def mean_entropy(logits: Tensor) -> float:
    """Mean entropy in nats of the laws of raw scores [n, vocabulary], at temperature 1."""
    return float(torch.special.entr(logits.double().softmax(dim=-1)).sum(dim=-1).mean())


class Probe(nn.Module):
    """Two layers over standardised hidden rows [n, hidden] -> scores [n, 3] of the classes."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("scale", torch.ones(hidden))
        self.first, self.second = nn.Linear(hidden, width), nn.Linear(width, len(CLASSES))

    def forward(self, rows: Tensor) -> Tensor:
        scores: Tensor = self.second(torch.relu(self.first((rows - self.mean) / self.scale)))
        return scores


@dataclass(frozen=True, eq=False)
class Router:
    """A trained probe with the policy that it chooses from. fingerprint: of the model whose rows it reads, the last layer's
    behind the final norm."""

    probe: Probe
    policy: Policy
    fingerprint: str

    def write(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Keep it in a folder, in float16. card: what else is told of it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in self.probe.state_dict().items()}
        save_file(tensors, folder / FILE)
        told = {
            "fingerprint": self.fingerprint,
            "rows": "last layer, final norm",
            "policy": asdict(self.policy),
            **card,
        }
        (folder / CARD).write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Router:
        """Raises BadInput where the folder holds none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            card = json.loads((folder / CARD).read_text("utf-8"))
            tensors = {name: tensor.float() for name, tensor in load_file(folder / FILE).items()}
            width, hidden = tensors["first.weight"].shape
            probe = Probe(hidden, width)
            probe.load_state_dict(tensors)
            told = dict(card["policy"])
            for name in CLASSES:
                told[name] = Strategy(**told[name])
            return cls(probe.eval(), Policy(**told), card["fingerprint"])
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"the folder {folder} holds no probe of diffadapt ({error}).") from None


def shipped(fingerprint: str) -> Path | None:
    """The folder of the probe that ships for the network of this fingerprint, if there is one."""
    return catalogue.made_for("diffadapt-*", fingerprint=fingerprint)
