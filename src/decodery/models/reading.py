"""Reading a transformers model from its folder: all of its weights, each from the file to its place, or a reason why not.

How weights of a family are renamed, joined and tied is left to transformers, which is handed them as a state dict, a few in
memory at a time (see `stored_weights`). What it finds missing, left over or of another shape is an error here; transformers
goes on with random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decodery.errors import ModelNotReadable, reason
from decodery.models.architecture import causal_class
from decodery.models.checkpoint import some
from decodery.models.fitting import check_found, uneven
from decodery.models.gguf import model as gguf_model
from decodery.models.gguf.dequantisation import dequantise
from decodery.models.gguf.weights import weight_source
from decodery.models.multimodal import Multimodal
from decodery.models.quantised import read_by_transformers
from decodery.models.quiet import quiet
from decodery.models.stored_weights import FLOATING, StoredWeight, put, stored_weights
from decodery.models.twin import cut_configuration, cut_vocabulary
from decodery.models.weight_names import unwrapped
from decodery.models.weight_source import Blocks, WeightSource

OWN_WAYS = ("auto_map", "quantization_config", "transformers_weights")
"""Entries of `config.json` by which transformers decides on the folder's files itself."""


def read_model(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """What `AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)` gives, bit for bit: on the CPU, in eval mode.

    config: the folder's `config.json`. Of a multimodal model the language model alone is read.
    Raises ModelNotReadable, where the folder holds no causal language model, or its weights do not fit it.
    """
    with quiet():
        source = weight_source(folder)
        if source is not None:
            return gguf_model.read_model(source, folder, dtype)
        kind, settled, whole = causal_class(folder, config)
        if getattr(settled, "quantization_config", None) or config.get("transformers_weights"):
            return read_by_transformers(folder, kind, settled, dtype)
        multimodal = None if whole is None else Multimodal.around(whole, kind, folder)
        model = filled(kind, settled, stored_weights(folder, dtype), dtype, folder, multimodal)
        if multimodal is not None:
            multimodal.check_same(model, folder)
        _set_generation(model, folder)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def read_tokenizer(folder: Path, foreign: bool = False) -> Any:
    """The tokenizer of a folder. foreign: its own class may be code that comes with it, but its files have the usual form.

    Raises ModelNotReadable where its files are damaged, or only code that comes with them can read them.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

    try:
        with quiet():
            if not foreign:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            usual = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else Qwen2Tokenizer
            return usual.from_pretrained(folder)
    except Exception as error:  # of two libraries, with no common kind
        if "trust_remote_code" in str(error):
            raise ModelNotReadable(
                f"the tokenizer in {folder} needs code that comes with it, and such code is never run; load it with "
                "transformers' trust_remote_code yourself and give it to decodery.wrap."
            ) from error
        raise ModelNotReadable(f"the tokenizer in {folder} cannot be read: {reason(error)}.") from error


def filled(
    kind: Any,
    config: Any,
    stored: Mapping[str, StoredWeight],
    dtype: torch.dtype,
    folder: Path,
    multimodal: Multimodal | None = None,
) -> Any:
    """A model of a class with these weights, in eval mode.

    kind: a transformers class; config: its configuration. multimodal: what the model is a part of; weights of other parts are
    passed over.
    Raises ModelNotReadable where weights are missing, left over, of another shape, or whole numbers.
    """
    with torch.device("meta"):  # no weights: it shows the names, and the shapes
        empty = kind._from_config(config, dtype=dtype)
    known = empty.state_dict()
    inner = {name: name if multimodal is None else multimodal.text_name(name) for name in stored}
    names = {name: short for name, short in inner.items() if short is not None}
    renamed = unwrapped(list(names.values()), known, empty.base_model_prefix)
    weights: dict[str, StoredWeight] = {}
    put(weights, ((renamed[short], stored[name]) for name, short in names.items()))
    settings: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = kind.from_pretrained(None, config=empty.config, state_dict=weights, **settings)
    except RuntimeError as error:  # weights of experts that cannot be joined; the report on which goes to a log
        lacking = uneven(weights)
        what = f"it lacks {some(lacking)}" if lacking else f"its weights cannot be joined for {kind.__name__}"
        raise ModelNotReadable(f"{folder} is incomplete: {what}.") from error
    check_found(found, model, folder, weights)
    return model.eval()


def _set_generation(model: Any, folder: Path) -> None:
    """What the folder says on generation; where it has no word of its own, what its configuration says."""
    from transformers import GenerationConfig

    if not model.can_generate():
        return
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    else:
        model.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )


def transformers_model(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' own network of what `store.resolve` gives, wherever its weights lie. Raises like `read_model`."""
    return read_model(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")), dtype)


class StoredWeights:
    """The weights of a folder under the names in its files, a `WeightSource`. Raises ModelNotReadable where files are missing
    or damaged; a weight whose numbers are not finite is found when it is read."""

    def __init__(self, folder: Path):
        self._stored = stored_weights(folder)

    def names(self) -> Iterable[str]:
        return self._stored

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._stored_numbers(name).to(dtype)

    def numbers(self, name: str) -> Tensor:
        weight = self._stored_numbers(name)
        return weight if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else weight.float()

    def _stored_numbers(self, name: str) -> Tensor:
        weight = self._stored[name]
        if weight.dtype not in FLOATING:
            raise ValueError(f"{name} is kept as {weight.dtype}, which is no number of a usual checkpoint")
        return weight[...]

    def blocks(self, name: str) -> Blocks | None:
        return None

    def release(self, name: str) -> None:
        pass


def empty_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder without its weights, in eval mode. Their memory is not written to, and so takes none until `fill`
    does; what a model computes for itself, such as the angles of rotations, is there."""
    from transformers import AutoConfig, AutoModelForCausalLM, initialization

    with initialization.no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype).eval()
    model.tie_weights()  # a part of making weights, which was left out
    return model


def fill(model: nn.Module, source: WeightSource) -> None:
    """Read the weights of a model from a source, one after the other; of each as many first rows and columns as the model
    has."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            blocks = source.blocks(name)
            if blocks is None:
                weight.copy_(source.tensor(name, weight.dtype)[tuple(map(slice, weight.shape))])
            else:
                some = blocks.rows.shape[1] * weight.shape[1] // blocks.inputs
                dequantise(blocks.rows[: len(weight), :some], blocks.kind, weight)
                source.release(name)


def cut(model: Any, layers: int, tokens: int, neurons: int) -> None:
    """Leave only the first layers of a model of the usual kind, the first neurons of their feed-forward, the first tokens, and
    what its configuration says of these."""
    config = model.config.get_text_config()
    cut_configuration(config, layers)
    model.base_model.layers = model.base_model.layers[:layers]
    inner = [layer.mlp for layer in model.base_model.layers]
    sizes = {part.gate_proj.out_features for part in inner}
    if sizes == {getattr(config, "intermediate_size", None)} and neurons < min(sizes):
        config.intermediate_size = neurons
        for part in inner:
            _leave(part.gate_proj, neurons, part.gate_proj.in_features)
            _leave(part.up_proj, neurons, part.up_proj.in_features)
            _leave(part.down_proj, part.down_proj.out_features, neurons)
    if tokens < config.vocab_size:
        cut_vocabulary(config, tokens)
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            for name, weight in list(module.named_parameters()):
                module._parameters[name] = nn.Parameter(weight.detach()[:tokens], requires_grad=False)
        model.tie_weights()


def _leave(product: nn.Linear, outputs: int, inputs: int) -> None:
    """Leave only some first outputs and inputs of a product without weights yet."""
    product.out_features, product.in_features = outputs, inputs
    for name, size in (("weight", (outputs, inputs)), ("bias", (outputs,))):
        if (weight := product._parameters[name]) is not None:
            product._parameters[name] = nn.Parameter(weight.detach().new_empty(size), requires_grad=False)


def end_tokens(model: Any, folder: Path) -> tuple[int, ...]:
    """The tokens that end a text, by the folder's generation config, or else by its model's configuration."""
    from transformers import GenerationConfig

    given = model.generation_config
    if (folder / "generation_config.json").is_file():
        given = GenerationConfig.from_pretrained(folder)
    said = given.eos_token_id
    ends = tuple(token for token in (said if isinstance(said, list | tuple) else [said]) if token is not None)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ends):
        raise ValueError(
            f"its generation settings name {said!r} as eos_token_id, which must be a token id or a list of them"
        )
    return ends


def is_usual(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the weights are those in the folder's files, as they stand there. config: the folder's `config.json`."""
    return not any(config.get(entry) for entry in OWN_WAYS) and not (folder / "adapter_config.json").exists()
