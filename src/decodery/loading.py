"""From a name, a folder or a transformers model to a `LanguageModel`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from decodery._lazy import without_collection
from decodery.engine.scheduling import Limits
from decodery.errors import BadSetting, DecoderyError, ModelNotReadable, reason
from decodery.language_model import LanguageModel
from decodery.models import adapters, masked_diffusion, store
from decodery.models.checkpoint import has_tokenizer, tokenizer_folder, weight_files
from decodery.models.gguf.weights import GgufWeights, pointed_at, weight_source
from decodery.models.insertions import Insertions
from decodery.models.known import Known
from decodery.models.native import build
from decodery.models.native.ahead import Ahead
from decodery.models.native.network import NativeNetwork
from decodery.models.paths import network_for
from decodery.models.quiet import quiet
from decodery.models.reading import is_usual, read_model, read_tokenizer
from decodery.models.rounding import check, check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from decodery.models.gguf.file import GgufFile
    from decodery.models.masked_diffusion import MaskedDiffusion
    from decodery.models.native.weights import Precision
    from decodery.models.scorer import Network

NATIVE: dict[str, Precision] = {
    "auto": "integer",
    "True": "integer",
    "integer": "integer",
    "exact": "packed",
    "packed": "packed",
    "native": "native",
}
"""By the word for the path: how the native code may keep weights, where it is tried at all."""


@without_collection()
def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    threads: int | None = None,
    fast: str | bool = "auto",
    quantize: str | None = None,
    kv_budget: int | str | None = None,
    prefill_chunk: int | None = None,
    progress: store.Progress | None = None,
) -> LanguageModel:
    """Load a model; fetch it first where it is not here yet.

    name: a bundled name (`decodery models` lists them), a repository id of the Hugging Face hub, a folder, or a .gguf
    file. dtype: "auto" (bfloat16 where the processor or GPU multiplies it fast, or where the native path runs, and the model is
    not tiny; else float32), "float32", "bfloat16", "float16". device: "auto" (a GPU when there is one), "cpu", "cuda", …
    threads: CPU threads for torch.
    fast: how passes are run: "auto", "exact", "integer", "packed", "native", "fused" or "off" (`decodery.models.paths`).
    quantize: "q8_0" or "q4_0": round the weights of a checkpoint in float32, float16 or bfloat16 to eight or four bits, as GGUF
    does, for the integer path on a CPU; embedding and head to eight in both cases. What the files hold quantised keeps its
    numbers, companions are loaded as they are. None: no weight is changed.
    kv_budget: most memory of the keys and values of all requests together, in bytes or as text ("2GB", "512MiB"); None: half of
    what is free when the first request comes. Requests that do not fit beside the others wait. prefill_chunk: tokens of prompts
    that are scored in one pass while other requests run; None: as many as do not hold these up for long, by the cost curve; 0:
    whole prompts. progress: told about downloads and installations.
    Raises UnknownModel, DownloadFailed, ModelNotReadable, BadSetting.
    """
    limits = Limits(kv_budget, prefill_chunk)
    if threads is not None:
        if threads < 1:
            raise BadSetting(f"threads must be at least 1, not {threads}.")
        torch.set_num_threads(threads)
    where = _device(device)
    if quantize is not None:
        check(quantize, fast)
        if dtype not in ("auto", "bfloat16", torch.bfloat16):
            raise BadSetting(f"quantize={quantize!r} computes in bfloat16, not in {dtype}; leave dtype out.")
        if where.type != "cpu":
            raise BadSetting(f"quantize={quantize!r} is for a CPU, not for {where}; give device='cpu'.")
        dtype = torch.bfloat16
    precision = NATIVE.get(str(fast)) if where.type == "cpu" else None
    with _Packing(precision if quantize is None else None) as packing:
        reading = None
        if precision is not None and _wants_native(Path(name), dtype):
            build.prepare()
            reading = packing.begin
        folder = store.resolve(str(name), progress=progress, reading=reading)
        base = adapters.base_folder(folder, progress) or folder
        kind = _dtype(dtype, where, base)
        label = Path(name).name if Path(name).exists() else str(name)
        try:
            config = masked_diffusion.read_config(base)
            diffusion = masked_diffusion.MaskedDiffusion.of(config)
            insertions = Insertions.of(config, base)
            bidirectional = diffusion is not None or insertions is not None
            if quantize is not None:
                check_model(quantize, label, config, bidirectional)
            foreign = masked_diffusion.is_foreign(config)

            def complete() -> Any:
                model = (masked_diffusion.load_foreign if foreign else read_model)(base, config, kind)
                return model if base == folder else adapters.merged(model, folder)

            usual = base == folder and not bidirectional and is_usual(folder, config)
            native = usual and (kind == torch.bfloat16 or _may_be_bfloat16(dtype, base))
            known = Known(folder)
            if native and (file := pointed_at(folder)) is not None:
                packing.begin(file)
            tokenizer = _tokenizer(folder, base, foreign, known)
            # After the tokenizer, whose reading takes memory that is free again then.
            found = (
                known.network(label, precision, quantize, packing.ahead) if native and precision is not None else None
            )
            if found is not None and (fast not in ("integer", "packed") or found[0].path == fast):
                kind = found[0].dtype  # what `complete` reads
                found[0].complete = complete
                return _combined(*found, tokenizer, folder, None, limits)
            if quantize is not None and weight_source(base) is not None:
                why_not = known.why_not or "adapters are added to numbers, and its file has none"
                raise BadSetting(f"{label} cannot be kept in {quantize}: {why_not}; leave quantize out.")
            model = complete().to(where)
            with quiet():  # a first pass may unpack quantised weights
                network = network_for(model, label, fast, owned=True, bidirectional=bidirectional, quantize=quantize)
        except DecoderyError:
            raise
        except Exception as error:  # files can be wrong in more ways than the libraries that read them have errors for
            raise ModelNotReadable(f"{name} cannot be loaded from {folder}: {reason(error)}.") from error
        if isinstance(network, NativeNetwork):
            network.complete = complete
        return _combined(network, _end_tokens(model, label), tokenizer, folder, diffusion, limits, insertions)


class _Packing:
    """Packs weights of a GGUF file from the moment on at which it is known, until the load is over. precision: how; None: not
    at all."""

    def __init__(self, precision: Precision | None):
        self._precision = precision
        self.ahead: Ahead | None = None

    def begin(self, file: GgufFile) -> None:
        if self._precision is not None and self.ahead is None:
            # Whoever reads the weights meets the same, and says it.
            with contextlib.suppress(ModelNotReadable, OSError):
                self.ahead = Ahead(GgufWeights(file), self._precision)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self.ahead is not None:
            self.ahead.end()


def load_tokenizer(name: str | Path, progress: store.Progress | None = None) -> Any:
    """The tokenizer of a model, as `load` reads it, without its weights. Raises UnknownModel, DownloadFailed,
    ModelNotReadable."""
    folder = store.resolve(str(name), progress=progress)
    base = adapters.base_folder(folder, progress) or folder
    try:
        return _tokenizer(folder, base, masked_diffusion.is_foreign(masked_diffusion.read_config(base)), Known(folder))
    except DecoderyError:
        raise
    except Exception as error:
        raise ModelNotReadable(f"the tokenizer of {name} cannot be read from {folder}: {reason(error)}.") from error


def _tokenizer(folder: Path, base: Path, foreign: bool, known: Known) -> Any:
    if foreign or base != folder:
        return read_tokenizer(folder if has_tokenizer(folder) else base, foreign)
    return known.tokenizer(partial(read_tokenizer, tokenizer_folder(folder)))


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | Any,
    *,
    name: str | None = None,
    folder: Path | None = None,
    fast: str | bool = False,
    quantize: str | None = None,
    diffusion: MaskedDiffusion | None = None,
    kv_budget: int | str | None = None,
    prefill_chunk: int | None = None,
    insertions: Insertions | None = None,
) -> LanguageModel:
    """A `LanguageModel` over transformers objects that you already have. The model is used in place, not changed.

    diffusion: what the decoders of a masked-diffusion model must know; None takes it from the model's configuration, and a
    model whose configuration does not describe one is causal. Such a model's layers are those of a causal one (Llama,
    Qwen2, …), trained to see everything. insertions: the same of an insertion language model, with its head.
    fast: "auto" lays a second copy of the weights out for speed, where the model's layout allows it (see
    `decodery.models.paths`); changes made to the model afterwards are not seen then. quantize: what that copy is rounded to,
    see `load`; of a model in bfloat16 on a CPU, with fast="auto" or "integer". kv_budget, prefill_chunk: see `load`.

    Raises BadSetting where the model cannot be run as asked; ModelNotReadable where the tokenizer has more tokens than the
    model, beside added ones, or the family cannot be packed.
    """
    label = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
    if diffusion is None:
        diffusion = masked_diffusion.MaskedDiffusion.of(model.config.to_dict())
    bidirectional = diffusion is not None or insertions is not None
    network = network_for(model, label, fast, bidirectional=bidirectional, quantize=quantize)
    limits = Limits(kv_budget, prefill_chunk)
    return _combined(network, _end_tokens(model, label), tokenizer, folder, diffusion, limits, insertions)


def _combined(
    network: Network,
    ends: Iterable[int],
    tokenizer: Any,
    folder: Path | None,
    diffusion: MaskedDiffusion | None,
    limits: Limits,
    insertions: Insertions | None = None,
) -> LanguageModel:
    label = network.name
    _check_belongs(tokenizer, network)
    ids = {*ends, *({tokenizer.eos_token_id} if getattr(tokenizer, "eos_token_id", None) is not None else ())}
    if diffusion is not None:
        ids |= set(diffusion.end_token_ids)
        if (turn_end := masked_diffusion.turn_end(tokenizer)) is not None:
            ids.add(turn_end)
        ids -= {diffusion.mask_token_id}
        diffusion = dataclasses.replace(diffusion, end_token_ids=tuple(sorted(ids)))
    ids = {token for token in ids if 0 <= token < network.vocabulary}  # others never come
    identity = str(folder or label)
    return LanguageModel(network, tokenizer, sorted(ids), folder, identity, diffusion, limits, load, insertions)


def _end_tokens(model: Any, label: str) -> list[int]:
    """What a model's generation settings say that its output ends with. Raises ModelNotReadable where it is no token id."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [token for token in (said if isinstance(said, list | tuple) else [said]) if token is not None]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ends):
        raise ModelNotReadable(
            f"the generation settings of {label} name {said!r} as eos_token_id, which must be a token id or a list of them."
        )
    return ends


def _check_belongs(tokenizer: Any, network: Network) -> None:
    """Raise ModelNotReadable where a tokenizer has more tokens than the network, beside those that were added to it later: a
    `[PAD]` without a row of its own is harmless as long as nobody uses it, and `LanguageModel.tokenize` sees to that."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    if size <= network.vocabulary:
        return
    added = tokenizer.get_added_vocab().values() if hasattr(tokenizer, "get_added_vocab") else ()
    own = size - sum(token >= network.vocabulary for token in added)
    if own > network.vocabulary:
        raise ModelNotReadable(
            f"the tokenizer has {own} tokens but {network.name} scores only {network.vocabulary}; they do not belong together."
        )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadSetting(f"device {str(device)!r} cannot be used here ({reason}); try auto or cpu.") from None
    return where


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


TINY = 64 * 2**20
"""Bytes of weights up to which "auto" computes in float32: passes this small are no faster in bfloat16. Those of a folder as
they are on disk, those of a GGUF file in float32."""


def _stored_bytes(folder: Path) -> int:
    """Bytes of a folder's weights: as they are on disk; those of a GGUF file in float32."""
    source = weight_source(folder)
    return sum(path.stat().st_size for path in weight_files(folder)) if source is None else 4 * source.parameters


def expected_bytes(name: str | Path, *, dtype: str = "auto", device: str = "auto") -> int:
    """About how much memory the weights of a model take once it is loaded; it is fetched where it is not here yet. Raises as
    `load` does."""
    folder = store.resolve(str(name))
    base = adapters.base_folder(folder) or folder
    size = _stored_bytes(base)
    return size if weight_source(base) is None else size * _dtype(dtype, _device(device), base).itemsize // 4


def _wants_native(path: Path, dtype: str | torch.dtype) -> bool:
    """Whether a path is that of a GGUF file which will surely be tried on the native path. To install it takes as long as to
    compile the decoder, and keeps one processor busy."""
    if path.suffix != ".gguf" or not path.is_file() or path.stat().st_size <= TINY:
        return False
    return _fast_bfloat16() or bool(build.usable()) if dtype == "auto" else dtype in ("bfloat16", torch.bfloat16)


def _may_be_bfloat16(dtype: str | torch.dtype, folder: Path) -> bool:
    """Whether the native path may be tried although torch would compute in float32: it is as fast where processors do not
    multiply bfloat16 themselves."""
    return dtype == "auto" and not _tiny(folder) and bool(build.usable())


def _fast_bfloat16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _tiny(folder: Path) -> bool:
    return _stored_bytes(folder) <= TINY


def _dtype(dtype: str | torch.dtype, device: torch.device, folder: Path) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if _tiny(folder):
            return torch.float32
        if device.type != "cpu":
            return torch.bfloat16
        return torch.bfloat16 if _fast_bfloat16() else torch.float32
    if dtype not in _DTYPES:
        raise BadSetting(f"dtype must be auto, {', '.join(_DTYPES)}, not {dtype!r}.")
    return _DTYPES[dtype]
