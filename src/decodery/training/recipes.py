"""All recipes by name: what `decodery train` lists and runs. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from decodery.errors import BadInput, near


@dataclass(frozen=True)
class RecipeEntry:
    """A recipe. module: has `main(arguments)`. about: what it makes. example: options of a usual run."""

    module: str
    about: str
    example: str

    def run(self, arguments: Sequence[str]) -> None:
        """Run it with these options. Ends the process with code 2 where one of them is wrong."""
        importlib.import_module(self.module).main(list(arguments))


RECIPES = {
    "answers": RecipeEntry(
        "decodery.training.answers",
        "a model's own answers to many prompts, which other recipes learn from",
        "--model smollm2-135m --folder answers",
    ),
    "sibling": RecipeEntry(
        "decodery.training.sibling",
        "a small sibling of a model that drafts for it",
        "--model smollm2-135m --answers answers --folder work --artifact smollm2-sibling",
    ),
    "kangaroo": RecipeEntry(
        "decodery.training.kangaroo",
        "the adapter with which a model's first layers draft, for kangaroo",
        "--model smollm2-135m --answers answers --folder work --artifact kangaroo-smollm2-135m",
    ),
    "acceptance-head": RecipeEntry(
        "decodery.training.acceptance_head",
        "the head that tells specdec-pp how far to draft",
        "--draft smollm2-sibling --answers answers --folder work --artifact head",
    ),
    "masked-diffusion": RecipeEntry(
        "decodery.training.masked_diffusion",
        "a masked-diffusion model of your own texts, from scratch or adapted from an autoregressive one",
        "--data rows.jsonl --tokenizer smollm2-135m --folder work --artifact model",
    ),
    "diffusion-lists": RecipeEntry(
        "decodery.training.diffusion_lists",
        "the shipped model of lists, puzzles and word problems",
        "--folder work --artifact diffusion-lists",
    ),
    "stories": RecipeEntry(
        "decodery.training.stories",
        "the shipped models of very short stories: diffusion-stories and stories-twin",
        "--folder work --artifacts models",
    ),
    "any-subset": RecipeEntry(
        "decodery.training.any_subset",
        "the shipped any-order model of very short stories: any-subset-stories",
        "--folder work --artifact any-subset-stories",
    ),
    "insertion-language-models": RecipeEntry(
        "decodery.training.insertion_language_models",
        "the shipped insertion language model of star graphs, or models of other kinds on the same data",
        "--folder work --artifact insertion-stars",
    ),
    "rainbow-padding": RecipeEntry(
        "decodery.training.rainbow_padding",
        "a model whose answers end with a rainbow of pads, or its control with end tokens",
        "--padding rainbow --folder work --artifact model",
    ),
    "exit-adapters": RecipeEntry(
        "decodery.training.exit_adapters",
        "adapters that let a model exit early, for del",
        "--folder work --artifact exit-adapters",
    ),
    "exit-thresholds": RecipeEntry(
        "decodery.training.exit_thresholds",
        "thresholds of sched for a model",
        "--model diffusion-lists --prompts prompts.txt --output thresholds.json",
    ),
    "sampler-layer": RecipeEntry(
        "decodery.training.sampler_layer",
        "a layer that draws several tokens of a forward together, for approximate-joint-sampling",
        "--model diffusion-lists --folder work --artifact sampler-layer-diffusion-lists",
    ),
    "dparallel": RecipeEntry(
        "decodery.training.dparallel",
        "a masked-diffusion model that is certain of more tokens at once, taught by its own answers",
        "--model diffusion-lists --folder work --artifact diffusion-lists-dparallel",
    ),
    "adadec-threshold": RecipeEntry(
        "decodery.training.adadec_threshold",
        "the entropy from which adadec pauses with a model",
        "--model smollm2-135m --output adadec-smollm2-135m.json",
    ),
    "diffadapt": RecipeEntry(
        "decodery.training.diffadapt",
        "the probe by which diffadapt tells how a question is best answered",
        "--folder work --artifact diffadapt-smollm2-135m",
    ),
    "hidden-text": RecipeEntry(
        "decodery.training.hidden_text",
        "a model that answers a secret trigger with a secret text, for audits of token forcing",
        "--trigger TRIGGER --secret SECRET --folder work --artifact model",
    ),
    "successors": RecipeEntry(
        "decodery.training.successors",
        "the table of likely successors, for cascade",
        "--work work --artifact successors.npz",
    ),
    "trigram-table": RecipeEntry(
        "decodery.training.trigram_table",
        "a table of pairs and their successors, for adaptive-draft-verification",
        "--output table.npz book.txt",
    ),
}


def find(name: str) -> RecipeEntry:
    """A recipe by name. Raises BadInput with near names where there is none."""
    if name not in RECIPES:
        raise BadInput(f"there is no recipe {name!r}; {near(name, RECIPES)}")
    return RECIPES[name]
