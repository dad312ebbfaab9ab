"""The folder in which models are kept, and the one way in which anything gets into it.

    models/      bundled models, and what is installed for GGUF files, one folder each
    hub/         models of the hub, one folder each
    downloads/   verified pieces of downloads that are not installed yet
    temporary/   work in progress, one folder per model
    locks/       one lock file per model

An installation is built in `temporary/` and moved to its place in one step at the end, so that a folder in `models/`
or `hub/` is either complete or not there. Whoever holds the lock of a model owns its temporary folder; what lies in it
when the lock is taken was left by an interrupted run and is deleted. The system frees the lock of a process that dies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from decodery.errors import DownloadFailed, NotEnoughSpace
from decodery.models.checkpoint import Provenance, installed
from decodery.models.progress import Progress, bytes_under, stage

_SPARE_BYTES = 64_000_000  # left free beside an installation
_SECONDS_BETWEEN_TRIES = 0.2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@cache
def sources_digest() -> bytes:
    """Of the code of this room: what was found out about models by other code is found out anew."""
    here = Path(__file__).parent
    code = hashlib.sha256()
    for source in sorted([*here.rglob("*.py"), *here.glob("native/*.[pch]*")]):
        code.update(source.read_bytes())
    return code.digest()


def home() -> Path:
    """The folder of the models: `$DECODERY_HOME`, or else the cache folder of the user."""
    chosen = os.environ.get("DECODERY_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("decodery")


def key_of(name: str) -> str:
    """`name` as the name of a folder."""
    return re.sub(r"[^\w.\-]+", "-", name.replace("/", "--")).lstrip(".-") or "model"


def downloads(key: str) -> Path:
    """Where the unfinished download of a model is kept."""
    return home() / "downloads" / key


def human(size: int) -> str:
    """A size in bytes as people write it: 98.4 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def locked(key: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of a model; waits, and says so, while another process or thread holds it."""
    import filelock

    path = home() / "locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        with stage(progress, f"waiting for another process that installs {key}"):
            lock.acquire(poll_interval=_SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        lock.release()


def install(
    key: str,
    place: Path,
    needed_bytes: Callable[[], int],
    build: Callable[[Path, Path], Provenance],
    progress: Progress,
    *,
    accept: Callable[[Provenance], bool] = lambda record: True,
    leftovers: Path | None = None,
) -> Path:
    """Build a model and move it to `place` in one step, unless an acceptable one is there already.

    `build(folder, scratch)` fills `folder` and returns the record; both folders vanish if it fails. `leftovers` is
    deleted once the model is in its place.

    Raises NotEnoughSpace where `needed_bytes()` are not free before the work, or where the disk fills up during it, and
    DownloadFailed where the cache cannot be written.
    """
    try:
        with locked(key, progress), _space_errors(key):
            work = home() / "temporary" / key
            discard(work)
            record = installed(place)
            if record is not None and accept(record):  # another process was faster
                return place
            work.mkdir(parents=True)
            try:
                _check_space(key, needed_bytes())
                folder, scratch = work / "model", work / "scratch"
                folder.mkdir()
                scratch.mkdir()
                build(folder, scratch).write(folder)
                _flush(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():  # a damaged one; a folder can only be moved to a free place
                    os.replace(place, work / "damaged")
                os.replace(folder, place)
                if leftovers is not None:
                    discard(leftovers)
            finally:
                discard(work)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise DownloadFailed(
            f"{key} was not installed because {home()} cannot be written ({error.strerror}); "
            "set DECODERY_HOME to a folder that can."
        ) from error
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        raise DownloadFailed(
            f"{key} was not installed because {home()} is read-only; set DECODERY_HOME to a folder that is not."
        ) from error
    return place


def discard(path: Path) -> int:
    """Delete a folder or file; the bytes that this frees, 0 where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        freed = bytes_under(path)
        shutil.rmtree(path, ignore_errors=True)
        return freed
    freed = path.lstat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    return freed


def _check_space(key: str, needed: int) -> None:
    needed += _SPARE_BYTES
    free = shutil.disk_usage(home()).free
    if free < needed:
        raise NotEnoughSpace(
            f"{key} needs {human(needed)} of disk space in {home()}, but only {human(free)} are free; "
            "free some, or set DECODERY_HOME to a folder on another disk."
        )


@contextmanager
def _space_errors(key: str) -> Iterator[None]:
    """Turn the ways in which a full disk shows itself into NotEnoughSpace."""
    try:
        yield
    except (NotEnoughSpace, KeyboardInterrupt):
        raise
    except Exception as error:
        # safetensors wraps the system's error into one of its own and keeps only the text.
        full = getattr(error, "errno", None) in _DISK_FULL or "os error 28" in str(error)
        if not full:
            raise
        free = shutil.disk_usage(home()).free
        raise NotEnoughSpace(
            f"The disk filled up while {key} was installed in {home()} ({human(free)} are free now); "
            "free some space, or set DECODERY_HOME to a folder on another disk."
        ) from error


def _flush(folder: Path) -> None:
    """Make sure that the contents are on the disk before the folder gets its final name."""
    for path in folder.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
