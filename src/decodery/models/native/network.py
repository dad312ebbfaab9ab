"""The native path: a whole pass of the usual decoder in one call of compiled code.

Faster than the fused path because nothing is launched between the products, and stricter: a row's scores do not depend on
what is scored beside it, bit for bit, in bfloat16 and for draft trees too.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decodery.models.attention import Segment
from decodery.models.forward import POST_NORM, Attend, Forward, Ranking, Scores, Slots, Tree, tree_bytes
from decodery.models.key_value_network import KeyValueNetwork, Pass, fingerprint_of, ids_of
from decodery.models.layout import ACTIVATIONS, SANDWICH_NORMS, Layout
from decodery.models.native import binding
from decodery.models.native.build import library
from decodery.models.native.cache import PairedCache
from decodery.models.native.weights import MATRICES, Precision, Weights, interleaved, most_bytes
from decodery.models.pages import give_back, large
from decodery.models.rounding import Rounded, with_weights
from decodery.models.scorer import Head, Work, pass_key
from decodery.models.sequence import Sequence
from decodery.models.weight_source import Checked, ModelWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from decodery.models.weight_source import WeightSource

QUERIES_KEYS_VALUES = ("q_proj", "k_proj", "v_proj")
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


class NativeNetwork(KeyValueNetwork):
    """A network of the usual kind whose passes run in compiled code.

    layout: what it computes. source: its weights, which are packed here, one after the other; `Rounded` ones only with the
    precision "integer". precision: how weights may be kept, and what rows are rounded to, see `Weights`; `path` then tells what
    came of it. ahead: those of the source that are packed already, in the same precision. Raises ValueError or NotBuilt where
    the layout or the machine does not qualify. Nothing is compared with transformers here: see `of`.
    """

    def __init__(
        self,
        layout: Layout,
        source: WeightSource,
        name: str,
        precision: Precision = "native",
        ahead: Weights | None = None,
    ):
        self.layout, self.name = layout, name
        self.library = library()
        """The compiled decoder."""
        self.device, self.dtype = torch.device("cpu"), torch.bfloat16
        self.threads = _usual_threads or torch.get_num_threads()
        self.vocabulary, self.context, self.hidden = layout.vocabulary, layout.context, layout.hidden
        self.layers = len(layout.layers)
        self.parameters = sum(math.prod(shape) for _, shape in layout.shapes())
        self._lock = threading.RLock()
        self._cache_shapes = ((layout.key_heads, layout.width),) * self.layers
        self._windows = tuple(layer.window for layer in layout.layers)
        self._windows_used = sorted({w for w in self._windows if w is not None})
        self._source: WeightSource | None = source
        self.quantize = source.quantize if isinstance(source, Rounded) else None
        self._transformers: PreTrainedModel | None = None
        self.complete: Callable[[], PreTrainedModel] | None = None
        """Builds the transformers model of these weights, for who asks for it."""
        self._fingerprint = ""
        self._tables: list[tuple[Tensor, Tensor]] = []
        if self.quantize is not None and precision != "integer":
            raise ValueError(f"weights are rounded for the integer path alone, not for {precision}")
        if layout.width % 64:
            raise ValueError(f"heads of width {layout.width} are no multiple of 64")
        if len(self._windows_used) > 1:
            raise ValueError("the layers have sliding windows of several sizes")
        if len(layout.rotations) > 2:
            raise ValueError("the layers have more than two kinds of rotation")
        matrices = [math.prod(shape) for _, shape in layout.shapes() if len(shape) > 1]
        self._weights = ahead or Weights(precision, large(most_bytes(sum(matrices), len(matrices))))
        self._weights.threads = self.threads
        with torch.inference_mode(), _calling:
            self._model = self._describe(Checked(source, layout))
        self.path: Precision = self._weights.precision_reached()
        if self.quantize is not None and not self._weights.rounded:
            raise ValueError("its files hold all of its matrices quantised already, which keep their numbers")
        self.rounds_inputs = self.path == "integer"

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        name: str,
        owned: bool = False,
        precision: Precision = "native",
        quantize: str | None = None,
    ) -> NativeNetwork:
        """The network of a transformers model. Whether its scores agree with transformers' own is for `confirmation` to say.

        owned: nobody else uses the model, which is not kept then. quantize: what its weights are rounded to, see `Rounded`;
        with the precision "integer" alone. Raises ValueError or NotBuilt where the model or the machine
        does not qualify.
        """
        from decodery.models.recognition import recognised

        if model.device.type != "cpu" or model.dtype != torch.bfloat16:
            raise ValueError("the native path is for bfloat16 on a CPU")
        layout, weights = recognised(model), ModelWeights(model)
        network = cls(layout, weights if quantize is None else Rounded(weights, layout, quantize), name, precision)
        if owned:
            network.fingerprint()  # looks at weights that go now
            network._source = None
        elif quantize is None:
            network._transformers = model
        else:
            network.complete = lambda: model
        return network

    @property
    def model(self) -> PreTrainedModel:
        """A transformers model of the same weights: the one that the network was made of, or one that is built now; rounded
        ones where they are rounded here."""
        if self._transformers is None:
            if self.complete is None:
                raise ValueError(f"the transformers model of {self.name} was given up when its weights were packed")
            whole = self.complete()
            if self.quantize is not None:
                whole = with_weights(whole, self._source or Rounded(ModelWeights(whole), self.layout, self.quantize))
            self._transformers = whole
        return self._transformers

    def fingerprint(self) -> str:
        if not self._fingerprint:
            assert self._source is not None
            names = sorted(name for name, _ in self.layout.shapes())
            self._fingerprint = fingerprint_of((name, self._source.tensor(name, torch.bfloat16)) for name in names)
        return self._fingerprint

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

    def _describe(self, source: WeightSource) -> binding.ModelStruct:
        layout, weights = self.layout, self._weights

        def vector(name: str) -> Tensor:
            return source.tensor(name, torch.bfloat16)

        def norm(name: str) -> int | None:
            return weights.floats(vector(name).float() + float(layout.unit_norms))

        # The largest first: what it takes to read them is free again when the others are packed.
        embedding = weights.read(source, layout.embedding)
        head = embedding if layout.tied else weights.read(source, layout.head)
        layers = (binding.LayerStruct * self.layers)()
        for index, (struct, layer) in enumerate(zip(layers, layout.layers, strict=True)):
            name = partial(layout.weight, index)

            def bias(part: str, name: Callable[..., str] = name) -> Tensor | None:
                return vector(name(part, "bias")) if part in layout.biased else None

            struct.input_norm = norm(name("input_layernorm"))
            if layout.sandwich:
                struct.attention_post_norm = norm(name("post_attention_layernorm"))
                struct.feed_forward_norm = norm(name(SANDWICH_NORMS[0]))
                struct.feed_forward_post_norm = norm(name(SANDWICH_NORMS[1]))
            else:
                struct.feed_forward_norm = norm(name("post_attention_layernorm"))
            if layout.head_norms:
                struct.query_norm, struct.key_norm = norm(name("self_attn.q_norm")), norm(name("self_attn.k_norm"))
            struct.queries_keys_values_bias = weights.floats(
                *(bias(f"self_attn.{part}") for part in QUERIES_KEYS_VALUES)
            )
            struct.output_bias = weights.floats(bias("self_attn.o_proj"))
            gate, up = bias("mlp.gate_proj"), bias("mlp.up_proj")
            struct.gate_and_up_bias = weights.floats(
                interleaved(gate, up) if gate is not None and up is not None else None
            )
            struct.down_bias = weights.floats(bias("mlp.down_proj"))
            struct.kind = 0 if layer.window is None else 1
            struct.rotation = -1 if layer.rotation is None else layer.rotation
            for field, (parts, how) in MATRICES.items():
                setattr(struct, field, weights.read(source, *map(name, parts), **how))
            if self.quantize is not None:  # numbers that were converted leave gaps, which the next ones seldom fit into
                give_back()
        give_back()
        self._layer_structs = layers
        self._head_bias = vector("lm_head.bias") if "lm_head" in layout.biased else None
        return binding.ModelStruct(
            layers=self.layers,
            hidden=layout.hidden,
            heads=layout.heads,
            key_heads=layout.key_heads,
            width=layout.width,
            feed_forward=layout.feed_forward,
            vocabulary=layout.vocabulary,
            activation=ACTIVATIONS.index(layout.activation),
            epsilon=layout.epsilon,
            scale=layout.attention_scale,
            embedding_scale=layout.embedding_scale,
            layer=layers,
            embedding=embedding,
            final_norm=norm(layout.final_norm),
            head=head,
            head_bias=weights.floats(self._head_bias),
        )

    def _rotations(self, highest: int) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines [positions, width] float32 of at least positions 0..highest, by kind of rotation."""
        if not self._tables or len(self._tables[0][0]) <= highest:
            positions = torch.arange(max(512, 1 << highest.bit_length()))
            self._tables = [rotation.angles(positions) for rotation in self.layout.rotations]
        return self._tables

    def _rows(self, matrix: binding.MatrixStruct, tokens: Tensor, scale: float = 1.0) -> Tensor:
        """Rows [n, hidden] of the embedding or the head."""
        ids = tokens.to(torch.int64).contiguous()
        rows = torch.empty(len(ids), self.layout.hidden, dtype=self.dtype)
        self.library.decodery_rows(matrix, self.layout.hidden, ids.data_ptr(), len(ids), scale, rows.data_ptr())
        return rows

    def entering(self, ids: Tensor) -> Tensor:
        return self._rows(self._model.embedding, ids, self.layout.embedding_scale)

    def new_sequence(self) -> Sequence:
        return Sequence(self, PairedCache(self._cache_shapes, self.dtype, self.device))

    @property
    def work(self) -> Work:
        layout = self.layout
        attention = 2 * layout.hidden * layout.width * (layout.heads + layout.key_heads)
        return Work(
            float(attention), float(3 * layout.hidden * layout.feed_forward), float(layout.hidden * layout.vocabulary)
        )

    def head(self, tokens: Tensor | None = None, normed: bool = True) -> Head:
        some = None
        if tokens is not None:
            from decodery.models.blocks import product

            some = product(
                self._rows(self._model.head, tokens), None if self._head_bias is None else self._head_bias[tokens]
            )

        @torch.inference_mode()
        def head(rows: Tensor) -> Tensor:
            rows = rows.to(self.dtype).contiguous()
            if some is not None:
                return some(self._normed(rows) if normed else rows).float()
            # A pass through no layer at all.
            want = array("q", range(rows.shape[0]))
            logits = torch.empty(rows.shape[0], self.vocabulary)
            asked = binding.PassStruct(
                rows=rows.shape[0],
                input=rows.data_ptr(),
                wanted=rows.shape[0],
                want=want.buffer_info()[0],
                bare=int(not normed),
                logits=logits.data_ptr(),
            )
            self._call_native(asked)
            return logits

        return head

    def _normed(self, rows: Tensor) -> Tensor:
        """Rows after the final norm: of a pass through no layer at all."""
        normed = torch.empty_like(rows)
        self._call_native(
            binding.PassStruct(rows=rows.shape[0], input=rows.data_ptr(), normed=normed.data_ptr(), wanted=0)
        )
        return normed

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
        """None for token ids, which the decoder looks up itself: a tensor of them takes as long as all else before a pass."""
        _, embedded = pass_key(forwards[0])
        return super()._inputs(forwards) if embedded else {}

    @torch.inference_mode()
    def _pass(self, asked: Pass) -> Scores:
        pack, layers, wanted, rank = asked.pack, asked.layers, asked.wanted, asked.rank
        ids = array("q")
        rows: Tensor | None = None
        if not asked.inputs:
            for segment in pack.segments:
                ids.extend(ids_of(segment.forward))
        else:
            rows = asked.inputs["inputs_embeds"][0].contiguous()
        count = len(ids) if rows is None else rows.shape[0]
        # Everything below is named: the structures hold bare addresses.
        position = array("q", asked.positions)
        slot, kept = array("q"), []
        segments = (binding.SegmentStruct * len(pack.segments))()
        for place, segment in zip(segments, pack.segments, strict=True):
            slot.extend(segment.forward.written_slots())
            kept.append(self._lay_out(place, segment))
        indices = layers.indices(self.layers)
        steps = array(
            "q",
            [4 * i + 2 * (i not in layers.skip_mlp) + (i not in layers.skip_attention) for i in indices],
        )
        tapped = {tap: torch.empty(count, self._model.hidden, dtype=self.dtype) for tap in asked.taps}
        tap_at = (ctypes.c_void_p * len(indices))()
        for step, index in enumerate(indices):
            if index in tapped:
                tap_at[step] = tapped[index].data_ptr()
        tables = self._rotations(max(asked.positions))
        want = array("q", wanted)
        logits = torch.empty(0 if rank else len(wanted), self.vocabulary)
        ranked = _Ranked(len(wanted), min(rank, self.vocabulary)) if rank else None
        struct = binding.PassStruct(
            rows=count,
            segments=len(segments),
            segment=segments,
            slot=slot.buffer_info()[0],
            position=position.buffer_info()[0],
            cosine=(ctypes.c_void_p * 2)(*(cos.data_ptr() for cos, _ in tables)),
            sine=(ctypes.c_void_p * 2)(*(sin.data_ptr() for _, sin in tables)),
            token=ids.buffer_info()[0] if rows is None else None,
            input=None if rows is None else rows.data_ptr(),
            steps=len(indices),
            step=steps.buffer_info()[0],
            tap=tap_at,
            normed=tapped[POST_NORM].data_ptr() if POST_NORM in tapped else None,
            wanted=len(wanted),
            want=want.buffer_info()[0],
            logits=logits.data_ptr(),
        )
        if ranked is not None:
            struct.ranked = ranked.k
            struct.ranked_ids, struct.ranked_shares = ranked.addresses()
        self._call_native(struct)
        del kept
        return Scores(logits, tapped, None if ranked is None else ranked.ranking())

    def _lay_out(self, struct: binding.SegmentStruct, segment: Segment) -> list[object]:
        """Fill in the structure of one sequence's rows; hands back the masks that it points at."""
        cache, forward = segment.cache, segment.forward
        assert isinstance(cache, PairedCache)
        struct.start, struct.rows, struct.columns = segment.start, forward.count, segment.columns
        struct.span = cache.table()
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
