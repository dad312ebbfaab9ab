"""A decoder compiled for another processor, whose functions run in an emulator of it."""

from __future__ import annotations

import ctypes
import mmap
import struct
import subprocess
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decodery.models.native.binding import LayerStruct, MatrixStruct, ModelStruct, PassStruct, SegmentStruct

BASE = 0x100000000000
"""Where the shared memory lies there, see calls.c."""
SIZE = 1 << 28
SPAN = 64
"""Rows of a span of a cache."""


class Memory:
    """What one call reads and writes, in memory that both processes share.

    Addresses that it hands back are those of the other process.
    """

    def __init__(self, start: int):
        self._start, self._used = start, 0
        self._back: list[tuple[int, int, int]] = []
        self._known: dict[int, int] = {}

    def room(self, size: int) -> int:
        place = BASE + self._used
        self._used += -(-size // 128) * 128
        assert self._used <= SIZE
        return place

    def there(self, place: int) -> int:
        return self._start + place - BASE

    def copied(self, address: int | None, size: int) -> int | None:
        """What stands at an address here."""
        if not address:
            return None
        place = self.room(size)
        ctypes.memmove(self.there(place), address, size)
        return place

    def shared(self, address: int | None, size: int) -> int | None:
        """The same, for what the call may change; once, however often it is named."""
        if address and address in self._known:
            return self._known[address]
        place = self.copied(address, size)
        if place is not None and address is not None:
            self._known[address] = place
            self._back.append((address, place, size))
        return place

    def array(self, kind: str, values: Sequence[int | None]) -> int:
        numbers = array(kind, [value or 0 for value in values])
        place = self.room(len(numbers) * numbers.itemsize)
        ctypes.memmove(self.there(place), numbers.tobytes(), len(numbers) * numbers.itemsize)
        return place

    def structure(self, made: ctypes.Structure | ctypes.Array[Any]) -> int:
        return self.copied(ctypes.addressof(made), ctypes.sizeof(made)) or 0

    def finish(self) -> None:
        """Bring back what the call has written."""
        for address, place, size in self._back:
            ctypes.memmove(address, self.there(place), size)


class Elsewhere:
    """A compiled decoder with the functions of one that `binding.load` hands back, run by an emulator.

    emulator: the command and its options. program: calls.c, compiled. library: the decoder. memory: a file to be made.
    """

    def __init__(self, emulator: Sequence[str], program: Path, library: Path, memory: Path):
        with memory.open("wb") as made:
            made.truncate(SIZE)
        with memory.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), SIZE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._shared))
        self._process = subprocess.Popen(
            [*emulator, str(program), str(library), str(memory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(10) == 0

    def _call(self, name: str, *arguments: int | None, number: float = 0.0) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        given = [argument or 0 for argument in arguments] + [0] * (8 - len(arguments))
        self._process.stdin.write(struct.pack("<32s8qd", name.encode(), *given, number))
        self._process.stdin.flush()
        result = self._process.stdout.read(4)
        assert len(result) == 4, f"{name} ended the process ({self._process.wait(10)})"
        return int.from_bytes(result, "little", signed=True)

    # The functions of the decoder

    def decodery_ready(self) -> int:
        return self._call("decodery_ready")

    def decodery_amx(self) -> int:
        return self._call("decodery_amx")

    def decodery_form(self, kind: int) -> int:
        return self._call("decodery_form", kind)

    def decodery_tile(self, form: int) -> int:
        return self._call("decodery_tile", form)

    def decodery_pack(
        self,
        blocks: Any,
        outputs: int,
        inputs: int,
        kind: int,
        rounded: int,
        stride: int,
        matrix: MatrixStruct,
        threads: int,
    ) -> int:
        memory = Memory(self._start)
        starts = memory.array("q", [memory.copied(block, 16 * stride) for block in blocks])
        tiles = memory.shared(matrix.tiles, _tiles(outputs, inputs) * matrix.bytes)
        there = memory.structure(MatrixStruct(tiles, matrix.bytes, matrix.group, matrix.form))
        done = self._call("decodery_pack", starts, outputs, inputs, kind, rounded, stride, there, threads)
        memory.finish()
        return done

    def decodery_product(self, matrix: MatrixStruct, outputs: int, inputs: int, rows: int, count: int, to: int) -> int:
        memory = Memory(self._start)
        there = memory.structure(_matrix(memory, matrix, outputs, inputs))
        given, found = memory.copied(rows, 2 * count * inputs), memory.shared(to, 4 * count * outputs)
        failed = self._call("decodery_product", there, outputs, inputs, given, count, found)
        memory.finish()
        return failed

    def decodery_rows(self, matrix: MatrixStruct, inputs: int, rows: int, count: int, factor: float, to: int) -> None:
        memory = Memory(self._start)
        asked = (ctypes.c_int64 * count).from_address(rows)
        outputs = (max(asked) // (16 * matrix.group) + 1) * 16 * matrix.group
        there = memory.structure(_matrix(memory, matrix, outputs, inputs))
        ids, found = memory.copied(rows, 8 * count), memory.shared(to, 2 * count * inputs)
        self._call("decodery_rows", there, inputs, ids, count, found, number=factor)
        memory.finish()

    def decodery_top(
        self, logits: int, rows: int, vocabulary: int, count: int, ids: int, shares: int, threads: int
    ) -> None:
        memory = Memory(self._start)
        given = memory.copied(logits, 4 * rows * vocabulary)
        found = memory.shared(ids, 8 * rows * count), memory.shared(shares, 4 * rows * count)
        self._call("decodery_top", given, rows, vocabulary, count, *found, threads)
        memory.finish()

    def decodery_move(self, table: int, layers: int, heads: int, width: int, rows: int, count: int, start: int) -> None:
        memory = Memory(self._start)
        highest = max([start + count - 1, *(ctypes.c_int64 * count).from_address(rows)])
        spans = _spans(memory, table, highest + 1, layers * 2 * heads * SPAN * width * 2)
        self._call("decodery_move", spans, layers, heads, width, memory.copied(rows, 8 * count), count, start)
        memory.finish()

    def decodery_pass(self, model: ModelStruct, asked: PassStruct, threads: int) -> int:
        memory = Memory(self._start)
        failed = self._call("decodery_pass", _model(memory, model), _pass(memory, model, asked), threads)
        memory.finish()
        return failed


def _tiles(outputs: int, inputs: int) -> int:
    return outputs // 16 * (inputs // 32)


def _matrix(memory: Memory, matrix: MatrixStruct, outputs: int, inputs: int) -> MatrixStruct:
    tiles = memory.copied(matrix.tiles, _tiles(outputs, inputs) * matrix.bytes)
    return MatrixStruct(tiles, matrix.bytes, matrix.group, matrix.form)


def _spans(memory: Memory, table: int, rows: int, size: int) -> int:
    spans = (ctypes.c_int64 * -(-rows // SPAN)).from_address(table)
    return memory.array("q", [memory.shared(span, size) for span in spans])


def _model(memory: Memory, model: ModelStruct) -> int:
    hidden, inner, width = model.hidden, model.feed_forward, model.width
    heads, keys = model.heads * width, model.key_heads * width
    matrices = {
        "queries": (heads, hidden),
        "keys": (keys, hidden),
        "values": (keys, hidden),
        "output": (hidden, heads),
        "gate_and_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    vectors = {
        **dict.fromkeys(["input_norm", "attention_post_norm", "feed_forward_norm", "feed_forward_post_norm"], hidden),
        **dict.fromkeys(["query_norm", "key_norm"], width),
        "queries_keys_values_bias": heads + 2 * keys,
        "output_bias": hidden,
        "gate_and_up_bias": 2 * inner,
        "down_bias": hidden,
    }
    layers = (LayerStruct * model.layers)()
    for layer, given in zip(layers, model.layer[: model.layers], strict=True):
        layer.kind, layer.rotation = given.kind, given.rotation
        for name, shape in matrices.items():
            setattr(layer, name, _matrix(memory, getattr(given, name), *shape))
        for name, size in vectors.items():
            setattr(layer, name, memory.copied(getattr(given, name), 4 * size))
    made = ModelStruct.from_buffer_copy(model)
    made.layer = ctypes.cast(ctypes.c_void_p(memory.structure(layers)), type(made.layer))
    made.embedding = _matrix(memory, model.embedding, model.vocabulary, hidden)
    made.head = _matrix(memory, model.head, model.vocabulary, hidden)
    made.final_norm = memory.copied(model.final_norm, 4 * hidden)
    made.head_bias = memory.copied(model.head_bias, 4 * model.vocabulary)
    return memory.structure(made)


def _pass(memory: Memory, model: ModelStruct, asked: PassStruct) -> int:
    rows, hidden = asked.rows, model.hidden
    slots = list((ctypes.c_int64 * rows).from_address(asked.slot)) if asked.slot else []
    span = model.layers * 2 * model.key_heads * SPAN * model.width * 2
    segments = (SegmentStruct * max(asked.segments, 1))()
    for place in range(asked.segments):
        given = asked.segment[place]
        made = segments[place] = SegmentStruct.from_buffer_copy(given)
        reached = max([given.columns, *(slot + 1 for slot in slots[given.start : given.start + given.rows])])
        segments[place].span = _spans(memory, given.span, reached, span)
        for kind in range(2):
            seen = given.rows * (given.columns - given.from_column[kind])
            segments[place].mask[kind] = memory.copied(made.mask[kind], seen)
    found = PassStruct.from_buffer_copy(asked)
    found.segment = ctypes.cast(ctypes.c_void_p(memory.structure(segments)), type(found.segment))
    found.slot, found.position = memory.copied(asked.slot, 8 * rows), memory.copied(asked.position, 8 * rows)
    if asked.position:
        turns = 4 * model.width * (max((ctypes.c_int64 * rows).from_address(asked.position)) + 1)
        for kind in range(2):
            found.cosine[kind] = memory.copied(asked.cosine[kind], turns)
            found.sine[kind] = memory.copied(asked.sine[kind], turns)
    found.token, found.input = memory.copied(asked.token, 8 * rows), memory.copied(asked.input, 2 * rows * hidden)
    found.step = memory.copied(asked.step, 8 * asked.steps)
    taps = [memory.shared(asked.tap[step], 2 * rows * hidden) for step in range(asked.steps)]
    found.tap = ctypes.cast(ctypes.c_void_p(memory.array("q", taps)), type(found.tap))
    found.normed = memory.shared(asked.normed, 2 * rows * hidden)
    found.want = memory.copied(asked.want, 8 * asked.wanted)
    if not asked.ranked:
        found.logits = memory.shared(asked.logits, 4 * asked.wanted * model.vocabulary)
    found.ranked_ids = memory.shared(asked.ranked_ids, 8 * asked.wanted * asked.ranked)
    found.ranked_shares = memory.shared(asked.ranked_shares, 4 * asked.wanted * asked.ranked)
    return memory.structure(found)
