"""What the tokens of a model say, in bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decodery.engine.spelling import REPLACEMENT
from decodery.errors import MethodUnavailable

if TYPE_CHECKING:
    from decodery.engine.host import Host

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""How tokenizers of the kind of SentencePiece write a space."""
NORMALIZERS = ("Replace", "Prepend", "NFC", "Sequence")
"""Steps before the tokens that leave what tokens say as it is."""


@dataclass(frozen=True)
class Spelled:
    """bytes: [vocabulary] what each token says; nothing for special tokens, ids without a token, and those that end an output.
    fallback: tokens that stand for one byte of a sign that has no token. added: tokens that are taken out of a text before all
    others."""

    bytes: list[bytes]
    fallback: frozenset[int] = frozenset()
    added: frozenset[int] = field(default_factory=frozenset)


def state_of(host: Host) -> Mapping[str, Any] | None:
    """The description of a model's tokenizer, where it is byte pair encoding of the package `tokenizers`."""
    backend: Any = getattr(host.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state: dict[str, Any] = json.loads(backend.to_str())
    name = host.network.name
    if state["model"]["type"] != "BPE":
        raise MethodUnavailable(
            f"bytes: {name} has a tokenizer of the kind {state['model']['type']}; byte pairs (BPE) are understood."
        )
    for step in _normalizers(state["normalizer"]):
        if step["type"] not in NORMALIZERS or (step["type"] == "Replace" and step["pattern"] != {"String": " "}):
            raise MethodUnavailable(f"bytes: {name} has a tokenizer that changes texts first ({step['type']}).")
    return state


def spelled(host: Host, state: Mapping[str, Any] | None) -> Spelled:
    """What the tokens of a model say. Raises MethodUnavailable where it is not known."""
    found = _by_asking(host) if state is None else _by_description(host, state)
    silent = set(host.stop_ids) | set(getattr(host.tokenizer, "all_special_ids", ()) or ())
    said = [b"" if token in silent else own for token, own in enumerate(found.bytes)]
    return Spelled(said, found.fallback - silent, found.added - silent)


def _by_asking(host: Host) -> Spelled:
    say = getattr(host.tokenizer, "token_bytes", None)
    tokenizer: Any = host.tokenizer
    size = host.network.vocabulary
    if say is not None:
        return Spelled([bytes(say(token)) for token in range(size)])
    known = min(size, len(tokenizer)) if hasattr(tokenizer, "__len__") else size
    texts = [tokenizer.decode([token]) for token in range(known)]
    if any(REPLACEMENT in text for text in texts):
        raise MethodUnavailable(
            f"bytes: the tokenizer of {host.network.name} has parts of signs as tokens, and is none of the package tokenizers."
        )
    return Spelled([*(text.encode() for text in texts), *[b""] * (size - known)])


def _by_description(host: Host, state: Mapping[str, Any]) -> Spelled:
    size = host.network.vocabulary
    model, found = state["model"], [b""] * size
    fallback: set[int] = set()
    byte_level = _has(state["decoder"], "ByteLevel") or _has(state["pre_tokenizer"], "ByteLevel")
    signs = _byte_signs() if byte_level else {}
    for written, token in model["vocab"].items():
        if token >= size:
            continue
        match = _FALLBACK.fullmatch(written) if model.get("byte_fallback") else None
        if match is not None:
            found[token] = bytes([int(match[1], 16)])
            fallback.add(token)
        elif byte_level:
            if all(sign in signs for sign in written):
                found[token] = bytes(signs[sign] for sign in written)
        else:
            found[token] = written.replace(SPACE, " ").encode(errors="replace")
    added: set[int] = set()
    for token in state["added_tokens"]:
        if token["id"] < size:
            found[token["id"]] = b"" if token["special"] else token["content"].encode()
            if not token["special"]:
                added.add(token["id"])
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        found[model["vocab"][unknown]] = b""
    return Spelled(found, frozenset(fallback), frozenset(added))


def _normalizers(state: Any) -> list[Any]:
    if state is None:
        return []
    return (
        [step for one in state["normalizers"] for step in _normalizers(one)] if state["type"] == "Sequence" else [state]
    )


def _has(state: Any, kind: str) -> bool:
    """Whether a step of this kind is in a description."""
    if isinstance(state, dict):
        return state.get("type") == kind or any(_has(value, kind) for value in state.values())
    return isinstance(state, list) and any(_has(value, kind) for value in state)


def _byte_signs() -> dict[str, int]:
    """How byte-level tokenizers write bytes: printable ones as themselves, the others from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + place): byte for place, byte in enumerate(others)}}
