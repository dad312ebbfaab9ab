"""API keys: who asks, and how much each may ask at once."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from decodery.errors import BadInput
from decodery.serving.failures import Failure

VARIABLE = "DECODERY_API_KEY"
ANYBODY = "anybody"


@dataclass(frozen=True)
class Caller:
    """Whose request it is. limit: of requests that may run or wait at once; None: no limit of its own."""

    name: str
    limit: int | None = None


class KeyRing:
    """The keys that are known; without any, everybody may ask. They are kept as hashes."""

    def __init__(self, keys: Mapping[str, Caller], limit: int | None = None):
        """keys: key -> whose. limit: of callers without one of their own."""
        self._known = [(_digest(key), Caller(who.name, who.limit or limit)) for key, who in keys.items()]
        self._anybody = Caller(ANYBODY)
        self._running: Counter[str] = Counter()

    @classmethod
    def of(cls, path: str | None, environment: Mapping[str, str], limit: int | None) -> KeyRing:
        """From a file and the environment. Raises BadInput."""
        keys = {} if path is None else read_keys(Path(path).expanduser())
        if environment.get(VARIABLE):
            keys.setdefault(environment[VARIABLE], Caller("environment"))
        return cls(keys, limit)

    @property
    def open(self) -> bool:
        """Whether everybody may ask."""
        return not self._known

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this Authorization header. Raises Failure (401).

        All keys are compared, each in constant time, so that the time tells nothing of them.
        """
        if not self._known:
            return self._anybody
        scheme, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest, who in self._known:
            if hmac.compare_digest(digest, given):
                found = who
        if found is None or scheme.lower() != "bearer":
            said = "no API key was given" if not authorization else "this API key is not known"
            raise Failure(
                401,
                f"{said}; send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def enter(self, caller: Caller) -> None:
        """A request of a caller begins. Raises Failure (429) where it has too many already."""
        if caller.limit is not None and self._running[caller.name] >= caller.limit:
            raise Failure(
                429,
                f"this API key has {caller.limit} requests running or waiting, which is its limit.",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        self._running[caller.name] += 1

    def leave(self, caller: Caller) -> None:
        """It is over."""
        self._running[caller.name] -= 1


def read_keys(path: Path) -> dict[str, Caller]:
    """Key -> whose. A line is KEY, NAME KEY, or NAME KEY LIMIT; # begins a comment. Raises BadInput, which shows no key."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the file of API keys {path} cannot be read: {error}.") from None
    keys: dict[str, Caller] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 3 or (len(words) == 3 and not (words[2].isdecimal() and int(words[2]) > 0)):
            raise BadInput(f"{path}, line {number}: a key is written as KEY, NAME KEY, or NAME KEY LIMIT.")
        name, key = (f"key-{number}", words[0]) if len(words) == 1 else (words[0], words[1])
        if key in keys or any(who.name == name for who in keys.values()):
            raise BadInput(f"{path}, line {number}: this key or its name stands there twice.")
        keys[key] = Caller(name, int(words[2]) if len(words) == 3 else None)
    if not keys:
        raise BadInput(f"the file of API keys {path} holds none.")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
