"""The scorer over transformers' decoders.

`TransformersNetwork` packs the rows of many sequences into one pass of a transformers model. It runs a copy of the model's
modules with the same weights, so that whoever owns the model may go on using it, and lets the copy attend with a function of
ours, which writes each row's keys and values into the row's own sequence and lets the row see exactly what its `Forward`
says. Layer choices, taps and injected hidden rows work on the copy's module list, so any family that uses transformers'
attention interface runs without code of ours.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.errors import ModelNotReadable, reason
from decodery.models.angles import Angles, by_row, crosses, note, read_again
from decodery.models.attention import ATTENTION_NAME, Pack, packing, register
from decodery.models.forward import POST_NORM, Forward, Layers, Scores
from decodery.models.key_value_network import KeyValueNetwork, Pass, fingerprint_of
from decodery.models.positions import RowPositions
from decodery.models.scorer import Head, Work
from decodery.models.twin import context_of, shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    model: a `PreTrainedModel` with a language-model head; it is not touched. Weights that change in place are seen, other
    modules put into it afterwards are not. name: how statistics and error messages call it.
    counting: hand it what stands for a cache, for families that count their positions from its length.
    Raises ModelNotReadable where the model has no list of decoder layers, or attends in a way that rows cannot be packed for.
    """

    def __init__(self, model: PreTrainedModel, name: str, counting: bool = False):
        register()
        self.model, self.name = model, name
        self.path = "eager"
        config = model.config.get_text_config()
        self.config = config
        self.vocabulary = int(config.vocab_size)
        self.context = context_of(config)
        self.device, self.dtype = model.device, model.dtype
        self.threads = torch.get_num_threads()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._lock = threading.RLock()
        self._fingerprint = ""
        try:
            self._running = shared(model, ATTENTION_NAME)
            self._base: nn.Module = self._running.base_model
            self._parent, self._list_name = self._find_layers(int(config.num_hidden_layers))
            self._modules: list[nn.Module] = list(self._parent._modules[self._list_name])  # type: ignore[call-overload]
            self.layers = len(self._modules)
            self._angles = Angles.of(self._running)
            if self._angles is not None:
                by_row(self._running, self._angles)
                self.context = max(self.context, self._angles.farthest)
            taken = inspect.signature(type(model).forward).parameters
            self._takes_rows = "logits_to_keep" in taken
            self._cache_name = next((n for n in ("cache", "past_key_values") if counting and n in taken), None)
            self._probe()
        except ModelNotReadable:
            raise
        except Exception as error:  # whatever the family's code does with what it did not expect
            raise ModelNotReadable(
                f"the rows of {name} ({type(model).__name__}) cannot be packed: {reason(error)}."
            ) from error

    def _find_layers(self, count: int) -> tuple[nn.Module, str]:
        """The module that holds the list of decoder layers, and the list's name there."""
        named = getattr(self.config, "num_layers", count)  # a layer of two attentions counts as two hidden ones
        for parent in self._base.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.ModuleList) and len(child) in (count, named):
                    return parent, name
        raise ModelNotReadable(f"{self.name} ({type(self.model).__name__}) has no list of {count} decoder layers.")

    def _probe(self) -> None:
        """One token through the model tells the width of its rows, how each layer attends, and the form of the layers'
        answers."""
        answers: list[Any] = []
        hook = self._modules[0].register_forward_hook(lambda _m, _i, out: answers.append(out))
        pack = Pack.probe(self.device)
        try:
            self._call(pack, {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=self.device)}, [0], [0])
        finally:
            hook.remove()
        layer_of = {id(part): i for i, layer in enumerate(self._modules) for part in layer.modules()}
        attending = [layer_of.get(id(module), -1) for module in pack.modules]
        if sorted(set(attending)) != list(range(self.layers)):
            raise ModelNotReadable(
                f"{self.name} ({type(self.model).__name__}) does not use transformers' attention interface in all of "
                f"its {self.layers} layers, so its rows cannot be packed."
            )
        self._tuple_output = isinstance(answers[0], tuple)
        self.hidden = int((answers[0][0] if self._tuple_output else answers[0]).shape[-1])
        self._places, self._calls = pack.places, pack.calls
        self._cache_shapes = tuple((call.heads, call.width) for call in pack.calls)
        self._attentions = tuple(attending)
        """Of each cache: its layer."""

    @property
    def _windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer. Raises ValueError where layers attend several times, or have masks of their own."""
        if self._attentions != tuple(range(self.layers)) or any(call.own_mask for call in self._calls):
            raise ValueError("its layers attend several times, or have masks that are no windows")
        return tuple(call.window for call in self._calls)

    @property
    def border(self) -> int | None:
        return None if self._angles is None else self._angles.border

    def room(self, cached: int, length: int) -> int:
        angles = self._angles
        if angles is None:
            return super().room(cached, length)
        return angles.room(cached, length, super().room(cached, length))

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        angles = self._angles
        if angles is None or not angles.rereads:
            return super().run_pass(forwards)
        answers: dict[int, Scores] = {}
        for place, forward in enumerate(forwards):
            if crosses(angles, forward):
                answers[place] = read_again(angles, forward, super().run_pass)
        usual = [place for place in range(len(forwards)) if place not in answers]
        if usual:
            answers |= zip(usual, super().run_pass([forwards[place] for place in usual]), strict=True)
        for forward in forwards:
            note(angles, forward)
        return [answers[place] for place in range(len(forwards))]

    def entering(self, ids: Tensor) -> Tensor:
        module: Any = self.model.get_input_embeddings()  # which scales its rows, in families that do
        with torch.no_grad():
            rows: Tensor = module(ids)
        return rows

    def head(self, tokens: Tensor | None = None, normed: bool = True) -> Head:
        @torch.inference_mode()
        def alone(rows: Tensor) -> Tensor:
            module: Any = self.model.get_output_embeddings()
            logits: Tensor = module(rows.to(self.device, self.dtype)).float()
            return logits if tokens is None else logits[:, tokens]

        if not normed:
            return alone

        def head(rows: Tensor) -> Tensor:
            entering = rows.to(self.device, self.dtype)[None]
            count = rows.shape[0]
            pack = Pack([], self.device, self._places, self._calls)
            with self._lock, self._replaced((), self.layers, entering):
                logits = self._call(pack, {"inputs_embeds": entering}, [0] * count, list(range(count)))
            return logits if tokens is None else logits[:, tokens]

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

    def _pass(self, asked: Pass) -> Scores:
        asked.pack.places, asked.pack.calls = self._places, self._calls
        with self._chosen_layers(asked.layers, asked.inputs), self._tapped(asked.taps) as tapped:
            return Scores(self._call(asked.pack, asked.inputs, asked.positions, asked.wanted), tapped)

    @torch.inference_mode()
    def _call(self, pack: Pack, inputs: dict[str, Tensor], positions: list[int], wanted: list[int]) -> Tensor:
        """Run the model on packed rows; logits [len(wanted), vocabulary] float32."""
        ids = torch.tensor([positions], device=self.device)
        # A mask of ones: without one transformers takes jumps of positions for the borders of texts of a training batch.
        common: dict[str, Any] = {
            **inputs,
            "position_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "use_cache": False,
        }
        if self._cache_name is not None:
            common[self._cache_name] = RowPositions(ids[0])
        with packing(pack):
            if not wanted:
                self._base(**common)
                return torch.empty(0, self.vocabulary, device=self.device)
            everything = wanted == list(range(ids.shape[1]))
            rows: int | Tensor = 0 if everything else torch.tensor(wanted, device=self.device)
            logits: Tensor = self._running(**common, **({"logits_to_keep": rows} if self._takes_rows else {})).logits[0]
        if logits.shape[0] != len(wanted):
            logits = logits[wanted]
        return logits.float()

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
        original = self._parent._modules[self._list_name]
        self._parent._modules[self._list_name] = nn.ModuleList(modules)
        try:
            yield
        finally:
            self._parent._modules[self._list_name] = original

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
