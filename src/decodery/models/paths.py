"""The ways in which a model's passes can be run, and the choice among them.

- packed: native, with weights in four or eight bits where these hold them without loss, as in models that were once
  quantised. The scores are native's, bit for bit; less memory is read.
- native: a whole pass in one call of compiled code; bfloat16 on a CPU, common layouts.
- fused: the blocks of common layouts in few operations of torch.
- off: transformers' own modules, which run every family.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from decodery.errors import BadSetting
from decodery.models.key_value_network import KeyValueNetwork
from decodery.models.network import TransformersNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("decodery")

PATHS = ("auto", "packed", "native", "fused", "off")
AUTOMATIC = ("packed", "fused")
"""What "auto" chooses from. Where no weights fit into fewer bits, the packed path is the native one."""


def network_for(
    model: PreTrainedModel, name: str, fast: str | bool = "auto", owned: bool = False, bidirectional: bool = False
) -> KeyValueNetwork:
    """A network over a model.

    fast: one of PATHS; "auto" (or True) takes the first that can run this model here, False means "off". owned: nobody
    else uses the model, so weights that a path keeps in another layout may be dropped from it. bidirectional: its forwards are
    whole canvases, for which "auto" leaves out the native code: it is built for few rows, and gains nothing on many.
    Raises BadSetting for another word, and where the path that was asked for cannot run the model here.
    """
    wanted = {True: "auto", False: "off"}.get(fast, fast) if isinstance(fast, bool) else fast
    if wanted not in PATHS:
        raise BadSetting(f"fast must be {', '.join(PATHS[:-1])} or {PATHS[-1]}, not {fast!r}.")
    for path in PATHS[1:-1]:
        if wanted == path or (wanted == "auto" and path in AUTOMATIC and not (bidirectional and path == "packed")):
            try:
                return _fast_network(path, model, name, owned, wanted == path)
            except (ValueError, RuntimeError, OSError) as reason:  # RuntimeError: shapes that do not fit
                if wanted == path:
                    raise BadSetting(f"{name} cannot run on the {path} path here: {reason}.") from reason
                log.info("%s does not run on the %s path: %s", name, path, reason)
    return TransformersNetwork(model, name)


def _fast_network(path: str, model: PreTrainedModel, name: str, owned: bool, required: bool) -> KeyValueNetwork:
    if path in ("packed", "native"):
        from decodery.models.native.network import NativeNetwork

        network = NativeNetwork.of(model, name, owned, packed=path == "packed")
        if network.path != path and required:
            raise ValueError("its weights do not fit into four or eight bits")
        return network
    from decodery.models.blocks import FusedNetwork

    return FusedNetwork(model, name)
