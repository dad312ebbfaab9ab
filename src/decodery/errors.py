"""The errors that a user can meet. Each message is one sentence: what was wrong, and what would be right.

The command line prints the message alone and exits with code 2; a server answers with a 4xx status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DecoderyError(Exception):
    """Base of every error that decodery raises on purpose."""


class UnknownModel(DecoderyError):
    """No model has this name: neither bundled, nor a folder, nor a file, nor a repository of the hub."""


class ModelNotReadable(DecoderyError):
    """The files of a model are there but cannot be used: damaged, incomplete, or of an unknown kind."""


class DownloadFailed(DecoderyError):
    """A download could not be completed or did not match its checksum; nothing was installed."""


class NotEnoughSpace(DecoderyError):
    """The disk cannot hold what is to be written."""


class NotEnoughMemory(DecoderyError):
    """A request can need more keys and values than the KV budget ever holds; refused before work starts."""


class UnknownMethod(DecoderyError):
    """No decoding method has this name."""


class MethodUnavailable(DecoderyError):
    """The method is known but something it needs is missing; the message says what."""


class BadParameter(DecoderyError):
    """A parameter of a method has an unknown name, a wrong type, or a value out of its range."""


class BadSetting(DecoderyError):
    """A generation setting is unknown, of the wrong type, or out of its range."""


class BadPrompt(DecoderyError):
    """The prompt is empty, malformed, or does not fit into the model's context."""


class Refused(DecoderyError):
    """A combination of method and settings that cannot keep its promises; refused before work starts."""


class ScoresNotNumbers(DecoderyError):
    """The scores of a token are not numbers, or forbid every token. Ends the request in which it happens.

    raw: the network's own scores are to blame, before any step of the law.
    """

    def __init__(self, message: str, raw: bool = False):
        super().__init__(message)
        self.raw = raw


class ConstraintFailed(DecoderyError):
    """An output cannot keep to its constraint, or the constraint became too large to follow. Ends the request in which it
    happens."""


class BadInput(DecoderyError):
    """A file or line given by the user cannot be read."""


def reason(error: BaseException) -> str:
    """What another library's error says, as the end of a sentence of ours: its first sentence, without the dot."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
    return said.split(". ")[0].rstrip(".:")


def near(name: str, known: Iterable[str]) -> str:
    """A trailing hint with the known names closest to `name`, or all of them where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}."
