"""Small masked-diffusion models for recipes that go on from one: the network, what it never writes, and prompts for it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decodery.errors import BadInput
from decodery.training.masking import Batch, rows_for
from decodery.training.networks import SmallLlama


@dataclass(frozen=True)
class Denoiser:
    """A small masked-diffusion model, and what its laws never give: `banned` ids, the mask among them."""

    network: Any
    mask: int
    banned: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> Denoiser:
        """Raises BadInput where the folder is none of a small masked-diffusion model that decodery trained."""
        from decodery.models.masked_diffusion import MaskedDiffusion, read_config

        config = read_config(folder)
        described = MaskedDiffusion.of(config)
        if described is None or config.get("model_type") != "llama" or not config.get("tie_word_embeddings"):
            raise BadInput(
                f"{folder} is no small masked-diffusion model that decodery trained, and this recipe takes no other."
            )
        return cls(SmallLlama.read(folder), described.mask_token_id, described.reserved)

    def scores(self, rows: Tensor) -> Tensor:
        """Log probabilities [..., vocabulary] float32 of hidden rows, without what is banned."""
        logits: Tensor = self.network.head(rows).float()
        return logits.index_fill(-1, torch.tensor(self.banned, device=logits.device), -torch.inf).log_softmax(-1)

    def rows(self, batch: Batch, hidden: Tensor) -> Tensor:
        """The rows [batch, length, width] that enter the head, those that are `hidden` being masked."""
        with torch.no_grad():
            return rows_for(self.network, batch.tokens.masked_fill(hidden, self.mask), batch.visible)


def list_prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of ParallelBench's lists and texts as `diffusion-lists` reads them."""
    from decodery.evaluation.parallelbench.tasks import TASKS
    from decodery.evaluation.parallelbench.words import encode, vocabulary
    from decodery.training.diffusion_lists import LENGTHS

    words, generator = vocabulary(), random.Random(seed)
    names = [name for name, task in TASKS.items() if task.group in ("lists", "text")]
    found = []
    for _ in range(count):
        task = TASKS[generator.choice(names)]
        length = generator.choice(LENGTHS if task.group == "lists" else task.lengths)
        found.append(encode(task.draw(length, generator).prompt, words))
    return found


def story_prompts(count: int, seed: int, folder: Path) -> list[list[int]]:
    """Beginnings of stories, by the tokenizer in the folder of a model."""
    from tokenizers import Tokenizer

    from decodery.training.story_prompts import story_beginnings

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text).ids for _, text in story_beginnings(count, seed)]


def given_prompts(path: Path, folder: Path, count: int, seed: int) -> list[list[int]]:
    """Prompts of a file, by the tokenizer in the folder of a model; drawn with repetition where they are too few."""
    from tokenizers import Tokenizer

    from decodery.models.checkpoint import tokenizer_folder
    from decodery.training.exit_thresholds import read_prompts

    tokenizer = Tokenizer.from_file(str(tokenizer_folder(folder) / "tokenizer.json"))
    texts, generator = read_prompts(path), random.Random(seed)
    chosen = generator.sample(texts, len(texts))[:count]
    chosen += generator.choices(texts, k=count - len(chosen))
    return [tokenizer.encode(text).ids for text in chosen]


def prompts_for(model: str, folder: Path, path: Path | None, count: int, seed: int) -> list[list[int]]:
    """`count` prompts for a model in a folder: of the file `path`, or, for the models that ship, of their own kind. Raises
    BadInput where there are none."""
    if path is not None:
        return given_prompts(path, folder, count, seed)
    if model == "diffusion-lists":
        return list_prompts(count, seed)
    if model == "diffusion-stories":
        return story_prompts(count, seed, folder)
    raise BadInput(f"there are no prompts for {model}; name a file of them: --prompts.")
