"""Texts that users give to methods to copy from or to count."""

from __future__ import annotations

from pathlib import Path

from decodery.errors import BadInput


def read_corpus(path: str) -> str:
    """The text of a UTF-8 file, as it is. Raises BadInput where it cannot be read."""
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"the corpus {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"the corpus {path} is not UTF-8 text (byte {error.start}).") from None
