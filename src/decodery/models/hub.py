"""Fetches a model or adapter of the Hugging Face hub: its configuration, tokenizer and weights, nothing else.

Weights are those in safetensors files; torch's own files are taken only where there are no others.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.errors import DownloadFailed, ModelNotReadable, UnknownModel
from decodery.models.checkpoint import Provenance, check, sha256_of
from decodery.models.progress import Progress, bytes_under, stage, watched

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_SECONDS_FOR_AN_ANSWER = 10.0
_WANTED = (".safetensors", ".json", ".model", ".jinja", ".txt")
_PICKLED = ("pytorch_model", "adapter_model")
_UNWANTED = ("consolidated",)  # the same weights in another layout
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_ADVICE = "connect and try again, or give a local folder or a .gguf file"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository; `sha256` is known for the large ones only."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What the hub says about a model."""

    repository: str
    revision: str
    licence: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(file.size for file in self.files)


def is_repository(name: str) -> bool:
    """Whether `name` has the form owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def look_up(repository: str) -> RemoteModel:
    """Ask the hub about a model, with one question and no retries, so that a missing network shows at once.

    Raises UnknownModel where there is no such model, ModelNotReadable where it has no weights that can be read, and
    DownloadFailed where the hub does not answer or does not allow access.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        found = HfApi().model_info(repository, files_metadata=True, timeout=_SECONDS_FOR_AN_ANSWER)
    except GatedRepoError as error:
        raise _gated(repository) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(f"The model hub has no model {repository!r}, or it is private and needs a login.") from error
    except HfHubHTTPError as error:
        raise DownloadFailed(f"The model hub refused to describe {repository} ({_first_line(error)}).") from error
    except Exception as error:  # each version of the hub's library has another HTTP client, with errors of its own
        raise DownloadFailed(
            f"{repository} cannot be fetched: no network, or the model hub is not reachable "
            f"({_first_line(error)}); {_ADVICE}."
        ) from error
    siblings = {sibling.rfilename: sibling for sibling in found.siblings or ()}
    files = []
    for name in _wanted(siblings):
        stored = siblings[name].lfs
        files.append(RemoteFile(name, siblings[name].size or 0, stored.sha256 if stored is not None else None))
    if not any(file.name.endswith((".safetensors", ".bin")) for file in files):
        raise ModelNotReadable(
            f"{repository} has no safetensors weights, nor a pytorch_model.bin; choose a model that has."
        )
    licence = getattr(found.card_data, "license", None) or "see its page on the hub"
    return RemoteModel(repository, found.sha or "main", str(licence), tuple(files))


def fetch(model: RemoteModel, downloads: Path, folder: Path, progress: Progress) -> Provenance:
    """Fetch the files of `model` by way of `downloads`, where unfinished ones wait, into `folder`; the record of it.

    Raises DownloadFailed where the connection breaks or a checksum is wrong.
    """
    _snapshot(model, downloads, progress)
    checksums = {}
    for file in model.files:
        path = downloads / file.name
        checksums[file.name] = sha256_of(path)
        if file.sha256 is not None and checksums[file.name] != file.sha256:
            path.unlink()
            raise DownloadFailed(
                f"{file.name} of {model.repository} arrived damaged; nothing was installed, try again."
            )
    for file in model.files:
        os.replace(downloads / file.name, folder / file.name)
    check(folder)
    return Provenance(
        name=model.repository,
        title=model.repository.split("/")[1],
        licence=model.licence,
        source=f"hub {model.repository}, revision {model.revision}",
        parameters="",
        sha256=checksums,
        download_bytes=model.size,
    )


def in_shared_cache(repository: str) -> Path | None:
    """A complete copy that another program has left in the hub's own cache on this machine, or None."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        check(folder)
    except Exception:  # not there, or not complete: in both cases there is nothing to use
        return None
    return folder


def _snapshot(model: RemoteModel, downloads: Path, progress: Progress) -> None:
    from huggingface_hub import snapshot_download, utils
    from huggingface_hub.errors import GatedRepoError

    bars: Any = utils  # typed by hand: the names below are public, but not marked so
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        with (
            stage(progress, f"downloading {model.repository}", model.size),
            watched(lambda: min(bytes_under(downloads), model.size), progress),
        ):
            snapshot_download(
                model.repository,
                revision=model.revision,
                local_dir=downloads,
                allow_patterns=[file.name for file in model.files],
                etag_timeout=_SECONDS_FOR_AN_ANSWER,
            )
    except GatedRepoError as error:
        raise _gated(model.repository) from error
    except OSError as error:
        if error.errno in _OF_THE_DISK:
            raise
        raise _broken(model, error) from error
    except Exception as error:
        raise _broken(model, error) from error
    finally:
        if shown:
            bars.enable_progress_bars()


def _wanted(names: Collection[str]) -> list[str]:
    """Which files of a repository make up the model, or the adapter where it holds no model."""
    adapter = "config.json" not in names and "adapter_config.json" in names
    top = [name for name in names if "/" not in name and not name.startswith(_UNWANTED)]
    of_it = [name for name in top if adapter or not name.startswith("adapter_")]
    safe = any(name.endswith(".safetensors") for name in of_it)
    pickled = [name for name in of_it if name.startswith(_PICKLED) and name.endswith(".bin") and not safe]
    return [name for name in of_it if name.endswith(_WANTED)] + pickled


def _gated(repository: str) -> DownloadFailed:
    return DownloadFailed(
        f"{repository} is gated: accept its terms on its page of the hub, log in with `hf auth login`, and try again."
    )


def _broken(model: RemoteModel, error: Exception) -> DownloadFailed:
    return DownloadFailed(
        f"{model.repository} could not be fetched completely ({_first_line(error)}); "
        "connect and try again, what has arrived is kept."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")
