"""The ways in which a model's passes can be run, and the choice among them.

- integer: native, with weights as their file's whole numbers and every product's inputs rounded to eight bits, block by
  block, as llama.cpp does; the fastest for weights that are quantised, and no longer the model's own scores to the last bit
  of bfloat16: docs/models.md says what that costs.
- packed: native, with weights in four or eight bits where these hold them without loss, as in models that were once
  quantised. The scores are native's, bit for bit; less memory is read.
- native: a whole pass in one call of compiled code; bfloat16 on a CPU, common layouts.
- fused: the blocks of common layouts in few operations of torch.
- off: transformers' own modules, which run every family whose attention can be told what each row sees.

What cannot be packed is run one text at a time with transformers' own cache (`own_cache.py`), unless a path was asked for by
its name.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, cast

from decodery.errors import BadSetting, ModelNotReadable
from decodery.models.confirmation import NotConfirmed, confirm
from decodery.models.key_value_network import KeyValueNetwork
from decodery.models.network import TransformersNetwork
from decodery.models.rounding import check, check_model, rounded, way

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from decodery.models.native.network import NativeNetwork
    from decodery.models.native.weights import Precision
    from decodery.models.scorer import Network

log = logging.getLogger("decodery")

PATHS = ("auto", "exact", "integer", "packed", "native", "fused", "off")
AUTOMATIC = {"auto": ("integer", "packed", "fused"), "exact": ("packed", "fused")}
"""What these words choose from. Where no weights fit into fewer bits, the packed path is the native one; "exact" leaves out
what rounds more than the model's own type does."""
NATIVE = ("integer", "packed", "native")


def network_for(
    model: PreTrainedModel,
    name: str,
    fast: str | bool = "auto",
    owned: bool = False,
    bidirectional: bool = False,
    quantize: str | None = None,
) -> Network:
    """A network over a model.

    fast: one of PATHS; "auto" (or True) takes the first that can run this model here, "exact" the first that rounds nothing
    which the model's own modules do not, False means "off". owned: nobody else uses the model, so weights that a path keeps
    in another layout may be dropped from it. bidirectional: its forwards are whole canvases, for which "auto" leaves out the
    native code: it is built for few rows, and gains nothing on many. quantize: what weights are rounded to, for the integer
    path alone, which "auto" then means. Raises BadSetting for another word, and where the path that was asked for cannot run
    the model here; ModelNotReadable where nothing can.
    """
    wanted = {True: "auto", False: "off"}.get(fast, fast) if isinstance(fast, bool) else fast
    if wanted not in PATHS:
        raise BadSetting(f"fast must be {', '.join(PATHS[:-1])} or {PATHS[-1]}, not {fast!r}.")
    if quantize is not None:
        check(quantize, fast)
        check_model(quantize, name, model.config.to_dict(), bidirectional)
        return _rounded_network(model, name, owned, quantize)
    for path in PATHS[2:-1]:
        chosen = path in AUTOMATIC.get(wanted, ()) and not (bidirectional and path in NATIVE)
        if wanted == path or chosen:
            make = partial(_fast_network, path, name=name, owned=False, required=False)
            try:
                confirm(make, model, path)
                return _fast_network(path, model, name, owned, wanted == path)
            except (
                ValueError,
                RuntimeError,
                OSError,
                ModelNotReadable,
            ) as reason:  # RuntimeError: shapes that do not fit
                if wanted == path:
                    raise BadSetting(f"{name} cannot run on the {path} path here: {reason}.") from reason
                log.info("%s does not run on the %s path: %s", name, path, reason)
    reasons = []
    if _recurrent(model):
        reasons.append(f"{name} ({type(model).__name__}) keeps a recurrent state, so its rows cannot be packed.")
    for counting in () if reasons else (False, True):
        packed = partial(TransformersNetwork, name=name, counting=counting)
        try:
            confirm(packed, model, f"off {counting}")
            return packed(model)
        except NotConfirmed as reason:
            reasons.append(
                f"packed rows of {name} ({type(model).__name__}) get other scores than transformers gives: {reason}."
            )
        except ModelNotReadable as reason:
            reasons.append(str(reason))
    if bidirectional:
        raise ModelNotReadable(reasons[0])
    log.info("%s runs one text at a time: %s", name, reasons[0])
    from decodery.models.own_cache import OwnCacheNetwork

    return OwnCacheNetwork(model, name)


def _recurrent(model: PreTrainedModel) -> bool:
    """Whether transformers' cache for a model has recurrent states. A comparison of scores does not always tell: without
    training they hardly depend on a state."""
    from transformers import DynamicCache

    try:
        layers = DynamicCache(config=model.config).layers
    except Exception:  # a configuration that says nothing of its layers' caches
        return False
    return any(hasattr(layer, "recurrent_states") for layer in layers)


def _rounded_network(model: PreTrainedModel, name: str, owned: bool, quantize: str) -> NativeNetwork:
    from decodery.models.native.network import NativeNetwork

    make = partial(NativeNetwork.of, name=name, precision="integer", quantize=quantize)
    try:
        confirm(make, model, way("integer", quantize), partial(rounded, quantize=quantize))
        return make(model, owned=owned)
    except (ValueError, RuntimeError, OSError, ModelNotReadable) as reason:
        raise BadSetting(f"{name} cannot be kept in {quantize} here: {reason}; leave quantize out.") from reason


def _fast_network(path: str, model: PreTrainedModel, name: str, owned: bool, required: bool) -> KeyValueNetwork:
    if path in NATIVE:
        from decodery.models.native.network import NativeNetwork

        network = NativeNetwork.of(model, name, owned, cast("Precision", path))
        if network.path != path and (required or path == "integer"):
            raise ValueError("its weights do not fit into four or eight bits")
        return network
    from decodery.models.blocks import FusedNetwork

    return FusedNetwork(model, name)
