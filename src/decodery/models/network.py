"""The scorer over transformers' decoders.

`TransformersNetwork` packs the rows of many sequences into one pass of an unmodified transformers model: it registers
an attention function of its own, which writes each row's keys and values into the row's own sequence and lets the row
see exactly what its `Forward` says. Layer choices, taps and injected hidden rows work on the module list, so any family
that uses transformers' attention interface runs without code of ours.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decodery.errors import ModelNotReadable
from decodery.models.attention import ATTENTION_NAME, Pack, packing, register
from decodery.models.forward import POST_NORM, Layers, Scores
from decodery.models.key_value_network import KeyValueNetwork, fingerprint_of
from decodery.models.scorer import Head, Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
"""One lock per model, not per network: a pass switches the model's attention and layers, whoever wrapped it."""


class _Skip(nn.Module):
    """Stands in for a layer that is not run: hands the rows on, in the form in which the family's layers answer."""

    def __init__(self, tuple_output: bool, rows: Tensor | None = None):
        super().__init__()
        self.tuple_output, self.rows = tuple_output, rows

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = hidden_states if self.rows is None else self.rows
        return (rows,) if self.tuple_output else rows


class _Nothing(nn.Module):
    """Stands in for an attention or feed-forward that is not run: adds nothing to the residual stream."""

    def __init__(self, pair: bool):
        super().__init__()
        self.pair = pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        rows = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return (rows, None) if self.pair else rows


ATTENTION_NAMES = ("self_attn", "attn", "self_attention", "attention")
FEED_FORWARD_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


def _sublayer(layer: nn.Module, names: Listing[str]) -> str:
    """The name under which a layer holds its attention or feed-forward. Raises ValueError where it has no such part."""
    for name in names:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise ValueError(f"{type(layer).__name__} has no part of its own named {' or '.join(names)}, to be left out")


class TransformersNetwork(KeyValueNetwork):
    """A transformers causal language model as a scorer.

    model: a `PreTrainedModel` with a language-model head, in eval mode; it is not modified outside of passes.
    name: how statistics and error messages call it.
    Raises ModelNotReadable where the model has no decoder layers or no attention interface.
    """

    def __init__(self, model: PreTrainedModel, name: str):
        register()
        self.model, self.name = model.eval(), name
        self.path = "eager"
        """How passes are run; part of what a cost curve was measured of."""
        config = model.config.get_text_config()
        self.config = config
        self.vocabulary = int(config.vocab_size)
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self.hidden = int(config.hidden_size)
        self.device, self.dtype = model.device, model.dtype
        self.threads = torch.get_num_threads()
        """Processor threads of its passes."""
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        """How many weights the model has."""
        self._lock = _locks.setdefault(model, threading.RLock())
        self._base: nn.Module = model.base_model
        self._list_name, modules = self._find_layers(int(config.num_hidden_layers))
        self._modules = list(modules)
        self.layers = len(self._modules)
        self._tuple_output = False
        self._fingerprint = ""
        self._cache_shapes: tuple[tuple[int, int], ...] = ()
        self._windows: tuple[int | None, ...] = ()
        with self._lock:
            self._probe()

    def _find_layers(self, count: int) -> tuple[str, nn.ModuleList]:
        for name, child in self._base.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return name, child
        raise ModelNotReadable(f"{self.name} ({type(self.model).__name__}) has no list of {count} decoder layers.")

    def _probe(self) -> None:
        """One token through the model tells the shape of each layer's keys and the form of the layers' answers."""
        shapes: dict[int, tuple[int, int]] = {}
        forms: list[bool] = []
        hook = self._modules[0].register_forward_hook(lambda _m, _i, out: forms.append(isinstance(out, tuple)))
        pack = Pack.probe(shapes)
        try:
            self._call(pack, {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=self.device)}, [[0]], [0])
        finally:
            hook.remove()
        if sorted(shapes) != list(range(self.layers)):
            raise ModelNotReadable(
                f"{self.name} ({type(self.model).__name__}) does not use transformers' attention interface in all of "
                f"its {self.layers} layers, so its rows cannot be packed."
            )
        self._tuple_output = forms[0]
        self._cache_shapes = tuple(shapes[i] for i in range(self.layers))
        self._windows = tuple(pack.windows[i] for i in range(self.layers))

    @property
    def embedding(self) -> Tensor:
        """What enters the first layer for each token id [vocabulary, hidden]: the embedding matrix, scaled where a family
        scales it."""
        module: Any = self.model.get_input_embeddings()
        if type(module) is nn.Embedding:
            return module.weight
        with torch.no_grad():
            rows: Tensor = module(torch.arange(module.weight.shape[0], device=self.device))
        return rows

    def head(self, tokens: Tensor | None = None) -> Head:
        output: Any = self.model.get_output_embeddings()
        weight = None if tokens is None else output.weight.detach()[tokens]

        def head(rows: Tensor) -> Tensor:
            entering = rows.to(self.device, self.dtype)[None]
            positions = [[0] * rows.shape[0]]
            with self._lock, self._replaced((), self.layers, entering), self._tapped((POST_NORM,)) as tapped:
                wanted = list(range(rows.shape[0])) if weight is None else []
                logits = self._call(Pack([], self.device), {"inputs_embeds": entering}, positions, wanted)
            return logits if weight is None else F.linear(tapped[POST_NORM], weight).float()

        return head

    def fingerprint(self) -> str:
        if self._fingerprint:
            return self._fingerprint
        self._fingerprint = fingerprint_of(sorted(self.model.named_parameters()))
        return self._fingerprint

    @property
    def work(self) -> Work:
        def size(module: nn.Module) -> float:
            return float(sum(p.numel() for p in module.parameters() if p.dim() > 1))

        layer = self._modules[0]
        attention, feed_forward = (
            size(getattr(layer, _sublayer(layer, names))) for names in (ATTENTION_NAMES, FEED_FORWARD_NAMES)
        )
        output: Any = self.model.get_output_embeddings()
        return Work(attention, feed_forward, size(output))

    def _pass(
        self,
        pack: Pack,
        inputs: dict[str, Tensor],
        positions: list[list[int]],
        wanted: list[int],
        layers: Layers,
        taps: Listing[int],
        rank: int,
    ) -> Scores:
        """One pass over packed rows: logits of the wanted rows (or the likeliest tokens of each, where `rank` is not 0), and
        the tapped rows of each layer."""
        with self._chosen_layers(layers, inputs), self._tapped(taps) as tapped:
            return Scores(self._call(pack, inputs, positions, wanted), tapped)

    @torch.inference_mode()
    def _call(self, pack: Pack, inputs: dict[str, Tensor], positions: list[list[int]], wanted: list[int]) -> Tensor:
        """Run the model on packed rows; logits [len(wanted), vocabulary] float32."""
        ids = torch.tensor(positions, device=self.device)
        with self._own_attention(), packing(pack):
            if not wanted:
                self._base(**inputs, position_ids=ids, use_cache=False)
                return torch.empty(0, self.vocabulary, device=self.device)
            everything = wanted == list(range(ids.shape[1]))
            rows: int | Tensor = 0 if everything else torch.tensor(wanted, device=self.device)
            answer = self.model(**inputs, position_ids=ids, use_cache=False, logits_to_keep=rows)
        logits: Tensor = answer.logits[0].float()
        return logits

    @contextlib.contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Switch the model to our attention function for one pass, and back (the user may share the model)."""
        configs = {id(config): config for config in (self.model.config, self.config)}.values()
        before = [config._attn_implementation_internal for config in configs]
        for config in configs:
            config._attn_implementation_internal = ATTENTION_NAME
        try:
            yield
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = name

    @contextlib.contextmanager
    def _chosen_layers(self, layers: Layers, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Replace the layers, attentions and feed-forwards that are not to run."""
        chosen = layers.indices(self.layers)
        halves = (layers.skip_attention, ATTENTION_NAMES, True), (layers.skip_mlp, FEED_FORWARD_NAMES, False)
        places = [
            (self._modules[i], _sublayer(self._modules[i], names), _Nothing(pair))
            for skipped, names, pair in halves
            for i in sorted(skipped.intersection(chosen))
        ]
        whole = [layer._modules[name] for layer, name, _ in places]
        try:
            for layer, name, nothing in places:
                layer._modules[name] = nothing
            with self._replaced(chosen, layers.start, inputs.get("inputs_embeds")):
                yield
        finally:
            for (layer, name, _), module in zip(places, whole, strict=True):
                layer._modules[name] = module

    @contextlib.contextmanager
    def _replaced(self, chosen: Listing[int] = (), start: int = 0, rows: Tensor | None = None) -> Iterator[None]:
        """Leave only the `chosen` layers; with `start` > 0 hidden `rows` enter layer `start`. The list keeps its length:
        families look up things by place."""
        if len(chosen) == self.layers:
            yield
            return
        running = set(chosen)
        modules = [m if i in running else _Skip(self._tuple_output) for i, m in enumerate(self._modules)]
        if start > 0:
            # Whatever the family does to its embeddings before the first layer must not touch hidden rows.
            modules[start - 1] = _Skip(self._tuple_output, rows)
        original = self._base._modules[self._list_name]
        self._base._modules[self._list_name] = nn.ModuleList(modules)
        try:
            yield
        finally:
            self._base._modules[self._list_name] = original

    @contextlib.contextmanager
    def _tapped(self, taps: Listing[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the output rows of layers (and of the final norm, POST_NORM) during one pass."""
        rows: dict[int, Tensor] = {}

        def collect(tap: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                if tap == POST_NORM:
                    rows[tap] = output.last_hidden_state[0]
                else:
                    rows[tap] = (output[0] if isinstance(output, tuple) else output)[0]

            return hook

        handles = [(self._base if t == POST_NORM else self._modules[t]).register_forward_hook(collect(t)) for t in taps]
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()
