"""The native decoder's structures and calls; mirrors decoder.h field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from pathlib import Path


class MatrixStruct(Structure):
    _fields_ = [("tiles", c_void_p), ("bytes", c_int64), ("group", c_int64), ("form", c_int64)]


class LayerStruct(Structure):
    _fields_ = [
        (name, c_void_p)
        for name in (
            "input_norm",
            "query_norm",
            "key_norm",
            "attention_post_norm",
            "feed_forward_norm",
            "feed_forward_post_norm",
        )
    ]
    _fields_ += [(name, MatrixStruct) for name in ("queries", "keys", "values", "output", "gate_and_up", "down")]
    _fields_ += [
        (name, c_void_p) for name in ("queries_keys_values_bias", "output_bias", "gate_and_up_bias", "down_bias")
    ]
    _fields_ += [("kind", c_int64), ("rotation", c_int64)]


class ModelStruct(Structure):
    _fields_ = [
        *(
            (name, c_int64)
            for name in (
                "layers",
                "hidden",
                "heads",
                "key_heads",
                "width",
                "feed_forward",
                "vocabulary",
                "activation",
            )
        ),
        ("epsilon", c_float),
        ("scale", c_float),
        ("embedding_scale", c_float),
        ("layer", POINTER(LayerStruct)),
        ("embedding", MatrixStruct),
        ("final_norm", c_void_p),
        ("head", MatrixStruct),
        ("head_bias", c_void_p),
    ]


class SegmentStruct(Structure):
    _fields_ = [
        ("start", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("span", c_void_p),
        ("mask", c_void_p * 2),
        ("from_column", c_int64 * 2),
        ("prefix", c_int64 * 2),
    ]


class PassStruct(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("segments", c_int64),
        ("segment", POINTER(SegmentStruct)),
        ("slot", c_void_p),
        ("position", c_void_p),
        ("cosine", c_void_p * 2),
        ("sine", c_void_p * 2),
        ("token", c_void_p),
        ("input", c_void_p),
        ("steps", c_int64),
        ("step", c_void_p),
        ("tap", POINTER(c_void_p)),
        ("normed", c_void_p),
        ("wanted", c_int64),
        ("want", c_void_p),
        ("bare", c_int64),
        ("logits", c_void_p),
        ("ranked", c_int64),
        ("ranked_ids", c_void_p),
        ("ranked_shares", c_void_p),
    ]


def load(path: Path) -> ctypes.CDLL:
    """The compiled decoder. Raises OSError where it cannot be loaded."""
    library = ctypes.CDLL(str(path))
    library.decodery_ready.restype = c_int
    library.decodery_amx.restype = c_int
    library.decodery_form.argtypes = [c_int64]
    library.decodery_form.restype = c_int64
    library.decodery_tile.argtypes = [c_int64]
    library.decodery_tile.restype = c_int64
    library.decodery_pack.argtypes = [c_void_p, *[c_int64] * 5, POINTER(MatrixStruct), c_int]
    library.decodery_pack.restype = c_int
    library.decodery_round.argtypes = [c_void_p, *[c_int64] * 4, c_void_p]
    library.decodery_round.restype = c_int
    library.decodery_product.argtypes = [POINTER(MatrixStruct), c_int64, c_int64, c_void_p, c_int64, c_void_p]
    library.decodery_product.restype = c_int
    library.decodery_rows.argtypes = [POINTER(MatrixStruct), c_int64, c_void_p, c_int64, c_float, c_void_p]
    library.decodery_rows.restype = None
    library.decodery_pass.argtypes = [POINTER(ModelStruct), POINTER(PassStruct), c_int]
    library.decodery_pass.restype = c_int
    library.decodery_top.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int]
    library.decodery_top.restype = None
    library.decodery_move.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64]
    library.decodery_move.restype = None
    return library
