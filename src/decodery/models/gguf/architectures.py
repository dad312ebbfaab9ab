"""The architectures of GGUF files that can be read: each one's configuration and names of weights."""

from __future__ import annotations

from typing import Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf.decoders import DECODERS, Architecture
from decodery.models.gguf.experts import MIXTURES
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.gemma4 import GEMMA4
from decodery.models.gguf.latent import DEEPSEEK2
from decodery.models.gguf.metadata import Metadata
from decodery.models.gguf.names import Stored, fact_of, layer_of, place_of
from decodery.models.gguf.older import OLDER
from decodery.models.gguf.recurrent import RECURRENT

ARCHITECTURES: dict[str, Architecture] = {
    **DECODERS,
    **MIXTURES,
    **OLDER,
    **RECURRENT,
    "gemma4": GEMMA4,
    "deepseek2": DEEPSEEK2,
}

REFUSED = {
    "t5": "it reads a text whole and answers it, and does not continue texts",
    "t5encoder": "it reads texts and does not continue them",
    "umt5": "it reads a text whole and answers it, and does not continue texts",
    "bert": "it reads texts and does not continue them",
    "nomic-bert": "it reads texts and does not continue them",
    "jina-bert-v2": "it reads texts and does not continue them",
    "gemma-embedding": "it reads texts and does not continue them",
    "deci": "its layers differ from each other, and transformers has no network for it",
}
"""Well known architectures that cannot be read, and why."""


def architecture_of(file: GgufFile) -> Architecture:
    """How files of this kind are read. Raises ModelNotReadable for an architecture that is not known."""
    found = ARCHITECTURES.get(file.architecture)
    if found is not None:
        return found
    why = REFUSED.get(file.architecture)
    raise ModelNotReadable(
        f"{file.path} is of architecture {file.architecture!r}, which cannot be read here"
        + (f": {why}." if why else f"; those that can: {', '.join(sorted(ARCHITECTURES))}.")
    )


def configuration(file: GgufFile) -> dict[str, Any]:
    """The configuration of the file's network, without what describes its tokenizer.

    Raises ModelNotReadable where an entry of the metadata is missing, cannot be honoured, or is read by nothing.
    """
    facts = Metadata(file)
    facts.check_general()
    build = architecture_of(file).configuration
    try:
        config = build(facts)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # of values of another type, or of no sense
        raise ModelNotReadable(f"{file.path} has metadata that describes no network ({error}).") from error
    facts.refuse_the_rest()
    tokens = len(file.tokenizer("tokens", ()))
    if tokens and config["vocab_size"] != tokens:
        raise ModelNotReadable(
            f"{file.path} is inconsistent: {tokens} tokens, but a network for {config['vocab_size']}."
        )
    return config


def place_in(file: GgufFile, tensor: str) -> Stored | None:
    """Where a tensor of the file belongs; None if it is no weight, or one that nothing uses, as those of layers that
    guess the tokens after the next one.

    Raises ModelNotReadable where nothing reads it.
    """
    if fact_of(tensor) is not None:
        return None
    architecture = architecture_of(file)
    ahead = file.metadata.get(f"{file.architecture}.nextn_predict_layers", 0)
    layer = layer_of(tensor)
    if ahead and layer is not None and layer >= file.metadata[f"{file.architecture}.block_count"] - ahead:
        return None
    if architecture.unused(file, tensor):
        return None
    names = architecture.names(file) if callable(architecture.names) else architecture.names
    place = place_of(names, architecture.layers, tensor)
    if place is None:
        raise ModelNotReadable(f"{file.path} holds the tensor {tensor}, which nothing here reads.")
    return place
