"""Denoisers whose laws are known: scorers for whole diffusion methods, without a network.

What a row scores is a function of the prompt and of the canvas that the row really sees, read off the cache. So a forward
that leaves a row out, or writes one to the wrong place, shows up as a wrong score.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Listing
from hashlib import blake2b
from typing import Any, ClassVar

import torch
from torch import Tensor

from decodery.models.forward import Forward, Scores, Slots
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.models.network import TransformersNetwork
from decodery.models.scorer import Scorer
from decodery.models.sequence import NothingKept, Sequence
from decodery.testing.hosts import LetterTokenizer, SmallLanguageModel

Filled = tuple[int, ...]
"""The tokens of a canvas; the mask where a position is not filled."""


class CanvasScorer(Scorer):
    """Base of the denoisers here. A subclass gives `score`.

    length: of the canvas, which is the end of every sequence. vocabulary: without the mask, which is the token after. shift:
    row i scores position i + 1.
    """

    def __init__(self, length: int, vocabulary: int, *, shift: bool = False, name: str = "denoiser", layers: int = 3):
        self.length, self.mask, self.shift, self.name, self.layers = length, vocabulary, shift, name, layers
        self.vocabulary, self.context = vocabulary + 1, 1 << 16

    @abstractmethod
    def score(self, prompt: Filled, canvas: Filled) -> Tensor:
        """Raw scores [length, vocabulary without the mask] of each position of a canvas behind a prompt."""

    def new_sequence(self) -> Sequence:
        return Sequence(self, NothingKept())

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        answers = []
        for forward in forwards:
            sequence, before = forward.sequence, forward.sequence.length
            tokens = [int(token) for token in forward.tokens]
            slots, positions = list(forward.written_slots()), list(forward.row_positions())
            sequence.write(slots, tokens, positions)
            texts: dict[bytes, Filled] = {}
            tables: dict[Filled, Tensor] = {}
            visible = forward.visible()
            rows = []
            for row in range(forward.count):
                mask = visible[row].numpy().tobytes()
                if mask not in texts:  # rows of one copy see the same
                    texts[mask] = self._seen(sequence, visible[row])
                assert texts[mask][positions[row]] == tokens[row], "a row does not see itself at its own position"
            for row in forward.logit_rows():
                text = texts[visible[row].numpy().tobytes()]
                prompt, canvas = text[: -self.length], text[-self.length :]
                if text not in tables:
                    # The mask's own score is high: whoever forgets to ban it, draws it.
                    tables[text] = torch.nn.functional.pad(self.score(prompt, canvas).float(), (0, 1), value=50.0)
                at = positions[row] - len(prompt) + self.shift
                rows.append(tables[text][at] if 0 <= at < self.length else torch.zeros(self.vocabulary))
            if forward.slots is Slots.NOWHERE:
                sequence.truncate(before)
            answers.append(Scores(torch.stack(rows) if rows else torch.empty(0, self.vocabulary)))
        return answers

    @staticmethod
    def _seen(sequence: Sequence, visible: Tensor) -> Filled:
        """The text that a row sees, by position. Raises AssertionError where a position is hidden or stands there twice."""
        columns = [column for column, seen in enumerate(visible.tolist()) if seen]
        by_position = {sequence.positions[column]: sequence.tokens[column] for column in columns}
        assert len(by_position) == len(columns), "a row of a canvas sees two rows of one position"
        assert sorted(by_position) == list(range(len(columns))), "a row of a canvas does not see all others"
        assert len(columns) == max(sequence.positions) + 1, "a row of a canvas does not see its end"
        return tuple(by_position[position] for position in range(len(columns)))


class TabularDenoiser(CanvasScorer):
    """Gives the exact conditional marginals of an explicit joint law, for any set of visible positions.

    joint: weights [vocabulary] * length, not negative, with a positive sum.
    """

    def __init__(self, joint: Tensor, **more: Any):
        super().__init__(joint.dim(), joint.shape[0], **more)
        self.joint = joint.double() / joint.double().sum()

    @classmethod
    def random(cls, length: int = 3, vocabulary: int = 3, seed: int = 0, **more: Any) -> TabularDenoiser:
        """A joint of independent exponential weights: nothing about it is a product."""
        uniform = torch.rand([vocabulary] * length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls(-uniform.clamp_min(1e-12).log(), **more)

    def score(self, prompt: Filled, canvas: Filled) -> Tensor:
        place: Any = tuple(slice(None) if token == self.mask else slice(token, token + 1) for token in canvas)
        left = self.joint[place]
        rows = torch.full((self.length, self.mask), -40.0, dtype=torch.float64)
        for position, token in enumerate(canvas):
            others = [axis for axis in range(self.length) if axis != position]
            marginal = left.sum(others) if others else left
            if token == self.mask:
                rows[position] = (marginal / marginal.sum()).log()
            else:
                rows[position, token] = 0.0
        return rows

    def law(self) -> dict[Filled, float]:
        """The joint law as outcomes with their probabilities."""
        return {
            outcome: float(self.joint[outcome]) for outcome in itertools.product(range(self.mask), repeat=self.length)
        }


class OracleDenoiser(CanvasScorer):
    """Gives the exact conditional marginals of the uniform law over some answers, with a coin for equals.

    Decoders give equals to the lowest token, which would make each position of a shuffled list the same item. So scores differ
    by at most COIN, by chance that depends on the prompt and the canvas: what is equally likely is taken at random, and another
    prompt is another toss. Where what is written has no completion among the answers, the law is that of all of them.

    answers: token ids, all of one length, without duplicates.
    """

    COIN: ClassVar[float] = 1e-4
    """In log probabilities; laws of up to 1,000 answers tell unequal tokens apart by more."""
    IMPOSSIBLE: ClassVar[float] = -40.0

    def __init__(self, answers: Listing[Filled], vocabulary: int, **more: Any):
        super().__init__(len(answers[0]), vocabulary, **more)
        self.answers = torch.tensor(answers, dtype=torch.long)

    def score(self, prompt: Filled, canvas: Filled) -> Tensor:
        shown = torch.tensor(canvas)
        fitting = self.answers[((self.answers == shown) | (shown == self.mask)).all(1)]
        fitting = fitting if len(fitting) else self.answers
        counts = torch.nn.functional.one_hot(fitting, self.mask).sum(0).double()
        toss = blake2b(repr((prompt, canvas)).encode(), digest_size=8).digest()
        coin = torch.rand(
            counts.shape, generator=torch.Generator().manual_seed(int.from_bytes(toss, "big") >> 1), dtype=torch.float64
        )
        # The likeliest stand at 0, where float32 tells tosses apart.
        scores = (counts / counts.amax(1, keepdim=True)).log() + self.COIN * coin
        return scores.masked_fill(counts == 0, self.IMPOSSIBLE)


class ScriptedDenoiser(CanvasScorer):
    """Scores from a Python function of the canvas, a tuple with -1 where it is masked -> [length, vocabulary]."""

    def __init__(
        self, length: int, vocabulary: int, script: Callable[[Filled], Listing[Listing[float]] | Tensor], **more: Any
    ):
        super().__init__(length, vocabulary, **more)
        self.script = script

    def score(self, prompt: Filled, canvas: Filled) -> Tensor:
        return torch.as_tensor(self.script(tuple(-1 if token == self.mask else token for token in canvas)))


def confident(length: int, vocabulary: int, confidences: Listing[float], tokens: Listing[int] | None = None) -> Tensor:
    """Scores [length, vocabulary] that give each position's token (by default: 0) this probability, and the others equal
    shares of the rest."""
    rows = torch.empty(length, vocabulary, dtype=torch.float64)
    for position, probability in enumerate(confidences):
        rows[position] = (1.0 - probability) / (vocabulary - 1)
        rows[position, tokens[position] if tokens else 0] = probability
    return rows.log()


def denoising_language_model(scorer: CanvasScorer, *, stop_ids: Listing[int] = ()) -> SmallLanguageModel:
    """A language model over a denoiser; its tokens are letters."""
    model = MaskedDiffusion(scorer.mask, scorer.shift, tuple(stop_ids), (), scorer.length)
    return SmallLanguageModel(scorer, LetterTokenizer(scorer.vocabulary), stop_ids, diffusion=model)


def toy_diffusion_model(
    seed: int = 0,
    *,
    layers: int = 2,
    hidden: int = 32,
    vocabulary: int = 24,
    canvas: int = 12,
    shift: bool = False,
    stop_ids: Listing[int] = (),
    dtype: torch.dtype = torch.float32,
    any_order: bool = False,
) -> SmallLanguageModel:
    """A tiny random Llama that is run with full attention, or as an any-order model, with letters as tokens and the last one as
    mask; the same for the same arguments. Sharp enough that what stands elsewhere on the canvas matters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        network = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if weight.dim() == 2:
            spread = 1.0 if "embed" in name or "lm_head" in name else 1.5 * weight.shape[1] ** -0.5
            weight.data = torch.randn(weight.shape, generator=generator) * spread
    scorer = TransformersNetwork(network.to(dtype), f"toy-diffusion-{seed}")  # type: ignore[arg-type]
    model = MaskedDiffusion(vocabulary - 1, shift, tuple(stop_ids), (), canvas, any_order=any_order)
    return SmallLanguageModel(scorer, LetterTokenizer(vocabulary), stop_ids, diffusion=model)
