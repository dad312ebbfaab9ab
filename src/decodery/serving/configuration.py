"""What a server is told: from the command line, a TOML file, or Python. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from decodery.engine.memory import parse_size
from decodery.errors import BadInput, BadSetting, near
from decodery.models.catalogue import SMOLLM2

REQUEST_METRICS = ("none", "summary", "detailed")
_HOST_NAME = re.compile(r"[a-z0-9._-]+", re.ASCII | re.IGNORECASE)
_SIZES = ("memory", "kv_budget", "prefix_cache", "max_body")


def _option(default: Any, help: str, *, flag: str = "", metavar: str | None = None, low: float | None = None) -> Any:
    """A field of the configuration. flag: on the command line, where it is not the field's own name."""
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar, "low": low})


@dataclass(frozen=True)
class ServerConfiguration:
    """All that a server is told. Raises BadSetting where a value cannot be."""

    # What is served
    models: tuple[str, ...] = _option(
        (SMOLLM2.name,),
        "A model as decodery.load takes it, or ID=NAME to call it ID; may be repeated. The first is loaded at the start, "
        "the others on first use.",
        flag="--model",
        metavar="NAME",
    )
    companions: tuple[str, ...] = _option(
        (),
        "A model that methods may use beside the served ones, such as draft-model(draft=NAME); may be repeated.",
        flag="--companion",
        metavar="NAME",
    )
    dtype: str = _option("auto", "auto, float32, bfloat16 or float16.")
    device: str = _option("auto", "auto, cpu, cuda, …")
    threads: int | None = _option(None, "Processor threads; default: all.", low=1)
    fast: str = _option("auto", "How passes are run: auto, packed, native (compiled), fused, or off.")
    memory: str | None = _option(
        None,
        "Most memory of weights, keys and values of all loaded models; the least recently used are unloaded. "
        "Default: none is unloaded.",
        metavar="SIZE",
    )
    kv_budget: str | None = _option(
        None,
        "Most memory of the keys and values of one model; default: a quarter of --memory, else half of what is free.",
        metavar="SIZE",
    )
    prefill_chunk: int | None = _option(
        None, "Prompt tokens in one pass while others run; 0: whole prompts; default: by the cost curve.", low=0
    )
    prefix_cache: str = _option(
        "256MB", "Memory, within the KV budget, for beginnings of prompts that are over; 0: none.", metavar="SIZE"
    )

    # Where
    host: str = _option("127.0.0.1", "Address to listen on; 0.0.0.0 is every network of this machine.")
    port: int = _option(8000, "Port to listen on; 0: any free one.", low=0)

    # How much at once
    max_concurrent: int = _option(64, "Requests of a model that are decoded at once.", low=1)
    max_queue: int = _option(256, "Requests of a model that may wait for that; others get 429.", low=0)
    max_connections: int = _option(
        1000, "Open connections; others are refused. No more than this process may open files, less 128.", low=1
    )
    max_texts: int = _option(64, "Texts of one request: prompts times n.", low=1)
    max_body: str = _option("4MB", "Largest body of a request.", metavar="SIZE")
    default_max_tokens: int = _option(
        1024,
        "Most new tokens of a chat or response that names no number, as far as the context has room; "
        "/v1/completions has 16, as at OpenAI.",
        low=1,
    )
    max_sessions: int = _option(64, "Sessions whose memory is kept; the least recently used is forgotten.", low=1)
    timeout: float = _option(600.0, "Seconds until a request must be answered in full.", low=0.001)
    drain: float = _option(30.0, "Seconds that running requests get to finish after SIGTERM.", low=0.0)

    # Who
    api_key_file: str | None = _option(
        None,
        "File with a line for each API key: KEY, NAME KEY, or NAME KEY LIMIT (of concurrent requests). "
        "DECODERY_API_KEY is a key too. Default: none is asked for.",
        metavar="FILE",
    )
    max_concurrent_per_key: int | None = _option(None, "Requests of one key that may run or wait at once.", low=1)
    cors_origins: tuple[str, ...] = _option(
        (), "A web origin whose pages may ask; may be repeated; default: none.", flag="--cors-origin", metavar="ORIGIN"
    )

    allowed_hosts: tuple[str, ...] = _option(
        (),
        "A name by which requests may call this server, besides localhost and --host; may be repeated. Others are refused "
        "where it listens on loopback, or where any is given.",
        flag="--allowed-host",
        metavar="NAME",
    )

    # What is told
    request_metrics: str = _option("summary", f"What a reply tells of its drafts: {', '.join(REQUEST_METRICS)}.")
    log_json: bool = _option(False, "Log lines of JSON.")
    log_prompts: bool = _option(False, "Write prompts into the log.")
    playground: bool = _option(True, "Offer a page at / to try methods and settings.")
    check: bool = _option(True, "Offer /v1/decodery/check, which loads the model a second time for each experiment.")

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            object.__setattr__(self, name, _checked(name, kind, value))
        for name in _SIZES:
            size = getattr(self, name)
            if size is not None and not (name == "prefix_cache" and size == "0"):
                parse_size(name, size)
        if not self.models:
            raise BadSetting("models must name at least one model.")
        ids = [served_name(entry)[0] for entry in self.models]
        for one in ids:
            if ids.count(one) > 1:
                raise BadSetting(f"two models are called {one!r}; give one of them another name, as ID=NAME.")
        if self.request_metrics not in REQUEST_METRICS:
            raise BadSetting(
                f"request_metrics must be one of {', '.join(REQUEST_METRICS)}, not {self.request_metrics!r}."
            )
        for name in self.allowed_hosts:
            if not (_HOST_NAME.fullmatch(name) or _is_address(name.strip("[]"))):
                raise BadSetting(
                    f"allowed_hosts names hosts without scheme and port, such as models.example.org, not {name!r}."
                )
        if self.port > 65535:
            raise BadSetting(f"port must be at most 65535, not {self.port}.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From values by name, as a file has them: hyphens count as underscores. Raises BadSetting for unknown names."""
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            own = name.replace("-", "_")
            if own not in known:
                raise BadSetting(f"a server has no option {name!r}; {near(own, known)}")
            if own in given:
                raise BadSetting(f"the option {own} is given twice.")
            given[own] = tuple(value) if isinstance(value, list) else value
        return cls(**given)

    def as_toml(self) -> str:
        """As a file that `read_file` reads; what is not set stands there as a comment."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lines.append(f"# {field.metadata['help']}")
            lines.append(f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}")
        return "\n".join(lines) + "\n"

    @property
    def names(self) -> dict[str, str]:
        """What clients call each model -> what it is loaded from."""
        return dict(served_name(entry) for entry in self.models)


def served_name(entry: str) -> tuple[str, str]:
    """What clients call a model, and what it is loaded from. A folder or file goes by its last part, for a path says too
    much of this machine."""
    name, sign, source = entry.partition("=")
    if sign and name.strip() and source.strip():
        return name.strip(), source.strip()
    path = Path(entry)
    return (path.name if entry.startswith((".", "/", "~")) and path.name else entry), entry


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def read_file(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises BadInput."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no TOML: {error}.") from error


def kinds(cls: type[Any]) -> dict[str, tuple[type, bool]]:
    """Field -> its type, where a tuple is one of strings, and whether it may be None."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        inner = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        own = next(kind for kind in inner if kind is not types.NoneType)
        found[name] = (typing.get_origin(own) or own, types.NoneType in inner)
    return found


def _checked(name: str, kind: tuple[type, bool], value: Any) -> Any:
    """The value as its type has it. Raises BadSetting."""
    own, optional = kind
    if value is None and optional:
        return None
    if own is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if own is str and name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    words = {
        tuple: "a list of strings",
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    fits = isinstance(value, own) and (own is bool or not isinstance(value, bool))
    if not fits or (own is tuple and not all(isinstance(item, str) and item for item in value)):
        raise BadSetting(f"{name} must be {words[own]}, not {value!r}.")
    low = next(field.metadata["low"] for field in dataclasses.fields(ServerConfiguration) if field.name == name)
    if low is not None and not value >= low:
        raise BadSetting(f"{name} must be at least {low:g}, not {value!r}.")
    return value


def _toml(value: Any) -> str:
    """A value as TOML writes it; its strings are written as JSON's are."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
