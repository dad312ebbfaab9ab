"""By which names a server may be called.

A page of any web site can make a browser ask a server of this machine, by giving its own name an address of this machine (DNS
rebinding); to the browser, page and server are then of one origin. The Host header still says the page's name.
"""

from __future__ import annotations

from collections.abc import Sequence

from decodery.serving.configuration import ServerConfiguration, is_loopback
from decodery.serving.failures import Failure

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
"""Addresses to listen on which nobody can call a server by."""
LONGEST = 100


class AllowedHosts:
    """The names by which requests may call a server."""

    def __init__(self, configuration: ServerConfiguration):
        given = [name.strip("[]") for name in configuration.allowed_hosts]
        guarded = given or is_loopback(configuration.host)
        own = [] if configuration.host in EVERYWHERE else [configuration.host]
        self.names = frozenset(name.lower() for name in (*LOOPBACK, *own, *given)) if guarded else None
        """In small letters; None: any."""

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raise Failure (421) where a request calls the server by another name, or by none or two.

        headers: of the request, with names in small letters, as ASGI has them.
        """
        if self.names is None:
            return
        said = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(said) == 1 and host_name(said[0]) in self.names:
            return
        told = repr(said[0][:LONGEST]) if len(said) == 1 else f"{len(said)} names"
        raise Failure(
            421,
            f"this server does not answer to {told}; call it localhost, or start it with --allowed-host.",
            code="unknown_host",
        )


def host_name(header: str) -> str:
    """The name in a Host header, in small letters: without the port, and without the brackets of an address of IPv6."""
    header = header.strip().lower()
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        return name if bracket and (not port or port.startswith(":")) else ""
    return header.partition(":")[0]
