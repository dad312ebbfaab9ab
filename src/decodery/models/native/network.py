"""The native path: a whole pass of the usual decoder in one call of compiled code.

Faster than the fused path because nothing is launched between the products, and stricter: a row's scores do not depend on
what is scored beside it, bit for bit, in bfloat16 and for draft trees too.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.models.attention import Pack, Segment
from decodery.models.blocks import LAYER_PARTS, SANDWICH, confirm, fits, product
from decodery.models.forward import POST_NORM, Attend, Forward, Layers, Ranking, Scores, Slots, Tree, tree_bytes
from decodery.models.key_value_network import ids_of
from decodery.models.native import binding
from decodery.models.native.build import library
from decodery.models.native.cache import PairedCache
from decodery.models.native.weights import FORMS, LINES, Weights, interleaved, norm_weight
from decodery.models.network import TransformersNetwork
from decodery.models.pages import give_back, large
from decodery.models.scorer import Head, Work, pass_key
from decodery.models.sequence import Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1}
STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose angles depend on the position alone."""
KINDS = ("full_attention", "sliding_attention")
"""What layers with angles of their own are called, where there are several."""
_usual_threads: int | None = None
"""What torch is set to outside of `working`."""
_calling = threading.Lock()
"""The compiled code's threads serve one caller at a time."""


class _Ranked:
    """Room for the `k` likeliest tokens of some rows, which the decoder fills."""

    def __init__(self, rows: int, k: int):
        self.k, self._ids, self._shares = k, array("q", bytes(8 * rows * k)), array("f", bytes(4 * rows * k))

    def addresses(self) -> tuple[int, int]:
        return self._ids.buffer_info()[0], self._shares.buffer_info()[0]

    def ranking(self) -> Ranking:
        ids, shares, starts = self._ids.tolist(), self._shares.tolist(), range(0, len(self._ids), self.k)
        return Ranking([ids[i : i + self.k] for i in starts], [shares[i : i + self.k] for i in starts])


class NativeNetwork(TransformersNetwork):
    """A transformers model whose passes run in compiled code.

    owned: nobody else uses the model, so its own copy of the weights is dropped. packed: keep weights in four or eight bits
    where that loses nothing; all scores stay the same. Raises ValueError or NotBuilt where the model or the machine does not
    qualify.
    """

    def __init__(self, model: PreTrainedModel, name: str, owned: bool = False, packed: bool = False):
        super().__init__(model, name)
        if self.device.type != "cpu" or self.dtype != torch.bfloat16:
            raise ValueError("the native path is for bfloat16 on a CPU")
        self._sandwich = fits(model, SANDWICH)
        if not self._sandwich and not fits(model, LAYER_PARTS):
            raise ValueError(f"{type(model).__name__} has another layer layout")
        self.library = library()
        """The compiled decoder."""
        matrices = [weight.numel() for weight in model.parameters() if weight.dim() > 1]
        # The last form takes two bytes a weight; the head may be counted as the embedding only, which is as large.
        room = large(2 * sum(matrices) + LINES * len(matrices))
        self._weights = Weights(FORMS if packed else FORMS[-1:], room)
        self._windows_used = sorted({w for w in self._windows if w is not None})
        if len(self._windows_used) > 1:
            raise ValueError("the layers have sliding windows of several sizes")
        with torch.inference_mode():
            self._model = self._describe()
        self._tables: list[tuple[Tensor, Tensor]] = []
        self.threads = _usual_threads or torch.get_num_threads()
        confirm(self)
        self._work = super().work
        if owned:
            self.fingerprint()  # looks at weights that go now
            self._drop()
        self.path = "packed" if self._weights.shortened else "native"

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Keep torch to one thread: its others would go on spinning after each small operation, where ours want to run."""
        global _usual_threads
        before = torch.get_num_threads()
        if before == 1:
            yield
            return
        torch.set_num_threads(1)
        _usual_threads = before
        try:
            yield
        finally:
            _usual_threads = None
            torch.set_num_threads(before)

    def _drop(self) -> None:
        """Free the layers' weights, which now lie packed. Embedding and head stay: they look tokens up, and make heads of few
        tokens."""
        for module in [part for layer in self._modules for part in layer.modules()]:
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(torch.empty(0, dtype=self.dtype), requires_grad=False)
        give_back()

    def _describe(self) -> binding.ModelStruct:
        base: Any = self._base
        weights = self._weights
        attention = base.layers[0].self_attn
        width = int(attention.head_dim)
        if width % 64:
            raise ValueError(f"heads of width {width} are no multiple of 64")
        if len(set(self._cache_shapes)) != 1:
            raise ValueError("the layers have keys of several shapes")
        rotation = getattr(base.rotary_emb, "rope_type", "default")
        if not STATIC_ROTATIONS.issuperset(rotation.values() if isinstance(rotation, dict) else [rotation]):
            raise ValueError("its rotary angles depend on the length of the text")
        config: Any = self.config
        if any(getattr(config, f"{place}_logit_softcapping", None) for place in ("attn", "final")):
            raise ValueError("it bounds its scores by a hyperbolic tangent")
        named = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
        activation = ACTIVATIONS.get(str(named))
        if activation is None:
            raise ValueError(f"its activation {named!r} is not known to the native path")
        layers = (binding.LayerStruct * self.layers)()
        for struct, layer, window in zip(layers, base.layers, self._windows, strict=True):
            at, ff = layer.self_attn, layer.mlp
            struct.input_norm = weights.floats(norm_weight(layer.input_layernorm))
            if self._sandwich:
                struct.attention_post_norm = weights.floats(norm_weight(layer.post_attention_layernorm))
                struct.feed_forward_norm = weights.floats(norm_weight(layer.pre_feedforward_layernorm))
                struct.feed_forward_post_norm = weights.floats(norm_weight(layer.post_feedforward_layernorm))
            else:
                struct.feed_forward_norm = weights.floats(norm_weight(layer.post_attention_layernorm))
            if hasattr(at, "q_norm"):
                struct.query_norm = weights.floats(norm_weight(at.q_norm))
                struct.key_norm = weights.floats(norm_weight(at.k_norm))
            struct.queries_keys_values_bias = weights.floats(at.q_proj.bias, at.k_proj.bias, at.v_proj.bias)
            struct.output_bias = weights.floats(at.o_proj.bias)
            if ff.gate_proj.bias is not None:
                struct.gate_and_up_bias = weights.floats(interleaved(ff.gate_proj.bias, ff.up_proj.bias))
            struct.down_bias = weights.floats(ff.down_proj.bias)
            struct.kind = 0 if window is None else 1
        # After all vectors: these stay, and would lie in the holes that the interleaved matrices leave for the next ones.
        for struct, layer in zip(layers, base.layers, strict=True):
            at, ff = layer.self_attn, layer.mlp
            struct.queries_keys_values = weights.pack(at.q_proj.weight, at.k_proj.weight, at.v_proj.weight)
            struct.output = weights.pack(at.o_proj.weight, together=2)
            struct.gate_and_up = weights.pack(interleaved(ff.gate_proj.weight, ff.up_proj.weight))
            struct.down = weights.pack(ff.down_proj.weight, together=2)
        self._layer_structs = layers
        head: Any = self.model.get_output_embeddings()
        embedding = None
        if type(base.embed_tokens) is nn.Embedding:  # families may scale the rows
            embedding = base.embed_tokens.weight.detach().contiguous()
            weights.held.append(embedding)
        return binding.ModelStruct(
            layers=self.layers,
            hidden=self.hidden,
            heads=attention.q_proj.out_features // width,
            key_heads=attention.k_proj.out_features // width,
            width=width,
            feed_forward=base.layers[0].mlp.gate_proj.out_features,
            vocabulary=self.vocabulary,
            activation=activation,
            epsilon=float(base.norm.eps if self._sandwich else base.norm.variance_epsilon),
            scale=float(attention.scaling),
            layer=layers,
            embedding=None if embedding is None else embedding.data_ptr(),
            final_norm=weights.floats(norm_weight(base.norm)),
            head=weights.pack(head.weight),
            head_bias=weights.floats(head.bias),
        )

    def _rotations(self, highest: int) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines [positions, width] float32 of at least positions 0..highest, by kind of layer."""
        if not self._tables or len(self._tables[0][0]) <= highest:
            rotary: Any = self._base.rotary_emb
            positions = torch.arange(max(512, 1 << highest.bit_length()))[None]
            kinds = [(kind,) for kind in KINDS] if isinstance(rotary.rope_type, dict) else [()]
            made = [rotary(torch.empty(1, 1, 1), positions, *kind) for kind in kinds]
            tables = [(cos[0].float().contiguous(), sin[0].float().contiguous()) for cos, sin in made]
            self._tables = tables * (len(KINDS) // len(tables))
        return self._tables

    def new_sequence(self) -> Sequence:
        return Sequence(self, PairedCache(self._cache_shapes, self.dtype, self.device))

    @property
    def work(self) -> Work:
        return self._work

    def head(self, tokens: Tensor | None = None) -> Head:
        base: Any = self._base
        output: Any = self.model.get_output_embeddings()
        bias = None if output.bias is None else output.bias.detach()
        some = None
        if tokens is not None:
            some = product(output.weight.detach()[tokens], None if bias is None else bias[tokens])

        @torch.inference_mode()
        def head(rows: Tensor) -> Tensor:
            rows = rows.to(self.dtype).contiguous()
            if some is not None:
                return some(base.norm(rows)).float()
            # A pass through no layer at all.
            want = array("q", range(rows.shape[0]))
            logits = torch.empty(rows.shape[0], self.vocabulary)
            asked = binding.PassStruct(
                rows=rows.shape[0],
                input=rows.data_ptr(),
                wanted=rows.shape[0],
                want=want.buffer_info()[0],
                logits=logits.data_ptr(),
            )
            self._call_native(asked)
            return logits

        return head

    def _call_native(self, asked: binding.PassStruct) -> None:
        with _calling:
            failed = self.library.decodery_pass(self._model, asked, self.threads)
        if failed:
            raise MemoryError(f"there is not enough memory to score {asked.rows} rows at once")

    def top(self, logits: Tensor, k: int) -> Ranking:
        rows, vocabulary = logits.shape
        k = min(k, vocabulary)
        logits = logits.contiguous()
        ranked = _Ranked(rows, k)
        with _calling:
            self.library.decodery_top(logits.data_ptr(), rows, vocabulary, k, *ranked.addresses(), self.threads)
        return ranked.ranking()

    def _inputs(self, forwards: Listing[Forward]) -> dict[str, Tensor]:
        """None where the decoder looks token ids up itself: a tensor of them takes as long as all else before a pass."""
        _, embedded = pass_key(forwards[0])
        return super()._inputs(forwards) if embedded or not self._model.embedding else {}

    @torch.inference_mode()
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
        ids = array("q")
        rows: Tensor | None = None
        if not inputs:
            for segment in pack.segments:
                ids.extend(ids_of(segment.forward))
        elif "input_ids" in inputs:
            base: Any = self._base
            rows = base.embed_tokens(inputs["input_ids"])[0].contiguous()
        else:
            rows = inputs["inputs_embeds"][0].contiguous()
        count = len(ids) if rows is None else rows.shape[0]
        # Everything below is named: the structures hold bare addresses.
        position = array("q", positions[0])
        slot, kept = array("q"), []
        segments = (binding.SegmentStruct * len(pack.segments))()
        for struct, segment in zip(segments, pack.segments, strict=True):
            slot.extend(segment.forward.written_slots())
            kept.append(self._lay_out(struct, segment))
        indices = layers.indices(self.layers)
        steps = array(
            "q",
            [4 * i + 2 * (i not in layers.skip_mlp) + (i not in layers.skip_attention) for i in indices],
        )
        tapped = {tap: torch.empty(count, self._model.hidden, dtype=self.dtype) for tap in taps}
        places = (ctypes.c_void_p * len(indices))()
        for place, index in enumerate(indices):
            if index in tapped:
                places[place] = tapped[index].data_ptr()
        angles = self._rotations(max(positions[0]))
        want = array("q", wanted)
        logits = torch.empty(0 if rank else len(wanted), self.vocabulary)
        ranked = _Ranked(len(wanted), min(rank, self.vocabulary)) if rank else None
        asked = binding.PassStruct(
            rows=count,
            segments=len(segments),
            segment=segments,
            slot=slot.buffer_info()[0],
            position=position.buffer_info()[0],
            cosine=(ctypes.c_void_p * 2)(*(cos.data_ptr() for cos, _ in angles)),
            sine=(ctypes.c_void_p * 2)(*(sin.data_ptr() for _, sin in angles)),
            token=ids.buffer_info()[0] if rows is None else None,
            input=None if rows is None else rows.data_ptr(),
            steps=len(indices),
            step=steps.buffer_info()[0],
            tap=places,
            normed=tapped[POST_NORM].data_ptr() if POST_NORM in tapped else None,
            wanted=len(wanted),
            want=want.buffer_info()[0],
            logits=logits.data_ptr(),
        )
        if ranked is not None:
            asked.ranked = ranked.k
            asked.ranked_ids, asked.ranked_shares = ranked.addresses()
        self._call_native(asked)
        del kept
        return Scores(logits, tapped, None if ranked is None else ranked.ranking())

    def _lay_out(self, struct: binding.SegmentStruct, segment: Segment) -> list[object]:
        """Fill in the structure of one sequence's rows; hands back the masks that it points at."""
        cache, forward = segment.cache, segment.forward
        struct.start, struct.rows, struct.columns = segment.start, forward.count, segment.columns
        struct.cache, struct.capacity = cache.address(), cache.capacity
        masks: list[object] = []
        for kind, window in enumerate([None, *self._windows_used]):
            if self._far(segment, window):
                visible = segment.visible(window)
            elif isinstance(forward.attend, Attend) and isinstance(forward.slots, Slots):
                # What every row sees; of causal rows only those up to the first row's own.
                whole = forward.attend is Attend.FULL
                struct.prefix[kind] = segment.columns - (0 if whole else forward.count - 1)
                continue
            elif isinstance(forward.attend, Tree):
                parents = forward.attend.parents
                tree = (ctypes.c_char * forward.count**2).from_buffer(
                    tree_bytes(0, forward.count - len(parents), parents)
                )
                struct.mask[kind], struct.from_column[kind] = ctypes.addressof(tree), forward.sequence.length
                masks.append(tree)
                continue
            else:
                visible = segment.visible(None)
            mask = visible.contiguous()
            struct.mask[kind] = mask.data_ptr()
            masks.append(mask)
        return masks

    @staticmethod
    def _far(segment: Segment, window: int | None) -> bool:
        return window is not None and segment.reaches(window)
