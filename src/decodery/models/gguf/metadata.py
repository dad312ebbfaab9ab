"""The metadata of a GGUF file, with an account of what was read: what nothing reads is an error, not a guess."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from decodery.errors import ModelNotReadable
from decodery.models.gguf.file import GgufFile
from decodery.models.gguf.names import fact_of
from decodery.models.gguf.tensors import read_tensor

_ABOUT_THE_FILE = (
    *("name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by", "size_label"),
    *("license", "url", "doi", "uuid", "repo_url", "source", "base_model", "dataset", "datasets", "tags", "languages"),
    *("copyright", "parameter_count", "file_type", "sampling"),
)
_READ_HERE = ("architecture", "type", "quantization_version", "alignment")
MEANINGLESS = {
    **{f"general.{name}": "describes the file, or suggests settings of sampling" for name in _ABOUT_THE_FILE},
    **{f"general.{name}": "read by check_general and by decodery.models.gguf.file" for name in _READ_HERE},
    "tokenizer": "read by decodery.models.gguf.tokenizer",
    "split": "read by decodery.models.gguf.file",
    "quantize": "tells how the file was quantised",
    "imatrix": "the same",
    "mradermacher": "the same",
}
"""Names, and beginnings of names up to a dot, that say nothing about scores, and why."""

OF_THE_ARCHITECTURE = {
    "rope.scaling.finetuned": "whether a model was trained with its scaling, which is applied either way",
    "tensor_data_layout": "a note of old converters; there is one layout by now",
}
"""Entries of an architecture that say nothing about scores, and why."""

_QUANTISATION_VERSION = 2


class Metadata:
    """The entries of a file's architecture, taken one by one. `refuse_the_rest` names those that nobody took."""

    def __init__(self, file: GgufFile):
        self.file = file
        self._taken: set[str] = set()
        self._read: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """The entry `<architecture>.<key>`."""
        self._taken.add(key)
        return self.file.metadata.get(f"{self.file.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """The same, of an entry that must be there."""
        value = self.take(key)
        if value is None:
            raise ModelNotReadable(f"{self.file.path} lacks the entry {self.file.architecture}.{key}.")
        return value

    def one(self, key: str, default: Any = None) -> Any:
        """An entry that may be a list of one value per layer, of a network whose layers are alike."""
        value = self.take(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.refusal(key, value, "a network whose layers differ, which transformers' class has not")
            return value[0]
        return value

    def expect(self, key: str, allowed: Collection[Any], meaning: str) -> None:
        """Refuse any value of an entry but those allowed. meaning: what another one would say."""
        value = self.take(key)
        if value is not None and value not in allowed:
            raise self.refusal(key, value, meaning)

    def refusal(self, key: str, value: Any, meaning: str) -> ModelNotReadable:
        """The error that an entry cannot be honoured."""
        return ModelNotReadable(f"{self.file.path} has {self._name(key)} = {_short(value)}: {meaning}.")

    def has(self, tensor: str) -> bool:
        """Whether the file holds a tensor of this name."""
        return any(entry.name == tensor for entry in self.file.tensors)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor, slowest dimension first. Raises ModelNotReadable where it is not there."""
        for entry in self.file.tensors:
            if entry.name == tensor:
                return tuple(reversed(entry.shape))
        raise ModelNotReadable(f"{self.file.path} is incomplete: it lacks the tensor {tensor}.")

    def numbers(self, tensor: str) -> list[float] | None:
        """The numbers of a tensor that says something about the network and is no weight of it; old files have it in the first
        layer. None where it is not there."""
        for name in (f"{tensor}.weight", f"blk.0.{tensor}.weight"):
            if self.has(name):
                self._read.add(tensor)
                return [float(number) for number in read_tensor(self.file, name)]
        return None

    def check_general(self) -> None:
        """Refuse files that are no language model, and quantised weights of another time."""
        metadata = self.file.metadata
        kind = metadata.get("general.type", "model")
        if kind != "model" or self.file.architecture == "clip" or "adapter.type" in metadata:
            meanings = {
                "adapter": "holds changes to a model's weights and not a model; merge it into its model first",
                "mmproj": "holds the eyes or ears of a model; give the file of its language model",
                "imatrix": "holds statistics for quantising and not a model",
            }
            kind = "mmproj" if self.file.architecture == "clip" else "adapter" if "adapter.type" in metadata else kind
            raise ModelNotReadable(
                f"{self.file.path} has general.type = {kind!r}: it {meanings.get(str(kind), 'is no language model')}."
            )
        version = metadata.get("general.quantization_version", _QUANTISATION_VERSION)
        if version != _QUANTISATION_VERSION:
            raise ModelNotReadable(
                f"{self.file.path} has general.quantization_version = {version}: blocks of weights are laid out in another "
                f"way; version {_QUANTISATION_VERSION} can be read."
            )
        if not self.file.architecture:
            raise ModelNotReadable(f"{self.file.path} does not name its architecture; it has no general.architecture.")

    def refuse_the_rest(self) -> None:
        """Raise ModelNotReadable where an entry was not taken that may have a meaning for scores."""
        prefix = f"{self.file.architecture}."
        self.expect("attention.causal", (True,), "each token sees those after it, so no text can be continued")
        self.expect("pooling_type", (0,), "a model of whole texts' meanings, which scores no tokens")
        for name, value in self.file.metadata.items():
            own = name.startswith(prefix) and name[len(prefix) :]
            if own and (own in self._taken or own in OF_THE_ARCHITECTURE):
                continue
            if not own and any(name == known or name.startswith(f"{known}.") for known in MEANINGLESS):
                continue
            raise ModelNotReadable(
                f"{self.file.path} has {name} = {_short(value)}, which nothing here reads for this architecture; "
                "scores without it could be wrong."
            )

        for entry in self.file.tensors:
            if (fact := fact_of(entry.name)) is not None and fact not in self._read:
                raise ModelNotReadable(
                    f"{self.file.path} holds the tensor {entry.name}, which nothing here reads for this architecture."
                )

    def _name(self, key: str) -> str:
        return f"{self.file.architecture}.{key}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]} ..."
