"""`decodery serve`: models behind OpenAI's HTTP interface."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from typer import Option

from decodery.cli.console import notice, print_line
from decodery.cli.options import needs, with_option_groups
from decodery.errors import BadInput
from decodery.serving.configuration import ServerConfiguration, kinds, read_file


class _ServerGroup:
    """Base of the group of options: one field for each of the configuration; None: not given."""

    def given(self) -> dict[str, Any]:
        """What was given, by the names of the configuration."""
        names = [field.name for field in dataclasses.fields(ServerConfiguration)]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and value != []}


def _field(field: dataclasses.Field[Any]) -> tuple[str, Any, Any]:
    """A field of the group, for a dataclass."""
    told, kind = field.metadata, kinds(ServerConfiguration)[field.name][0]
    name = told["flag"] or "--" + field.name.replace("_", "-")
    default: Any = field.default
    shown = ", ".join(default) if kind is tuple else "" if default is None else str(default)
    option = Option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        help=told["help"],
        metavar=told["metavar"],
        show_default=("yes" if field.default else "no") if kind is bool else shown or False,
    )
    return field.name, Annotated[(list[str] if kind is tuple else kind) | None, option], None


if TYPE_CHECKING:
    ServerOptions: TypeAlias = _ServerGroup
else:
    ServerOptions = dataclasses.make_dataclass(
        "ServerOptions",
        [_field(field) for field in dataclasses.fields(ServerConfiguration)],
        bases=(_ServerGroup,),
        frozen=True,
    )
    ServerOptions.__doc__ = "The options of a server; made of what its configuration declares."


@with_option_groups
def serve(
    options: ServerOptions,
    config: Annotated[
        Path | None, Option("--config", metavar="FILE", help="A TOML file with any of these options; options here win.")
    ] = None,
    ray: Annotated[
        bool,
        Option("--ray", help="Serve by replicas on a Ray cluster: the one that is there, or else one on this machine."),
    ] = False,
    replicas: Annotated[
        int | None, Option("--replicas", help="With --ray: how many replicas.", show_default="1")
    ] = None,
    autoscale: Annotated[
        str | None,
        Option("--autoscale", metavar="MIN:MAX", help="With --ray: so many replicas as requests need, such as 1:4."),
    ] = None,
    print_config: Annotated[
        bool, Option("--print-config", help="Print the whole configuration as such a file, and end.")
    ] = False,
) -> None:
    """Serve models over HTTP, as OpenAI does: chat, completions and responses, with any decoding method.

    A request names its method: "method": "token-recycling(k=4)". SIGTERM or Ctrl-C lets running requests finish; a second
    one ends them. docs/serving.md tells the fields of requests.

    Example: `decodery serve --model smollm2-135m --port 8000`
    """
    values = {} if config is None else read_file(config)
    given = options.given()
    kept = {name: value for name, value in values.items() if name.replace("-", "_") not in given}
    configuration = ServerConfiguration.of({**kept, **given})
    if print_config:
        print_line(configuration.as_toml().rstrip("\n"))
        return
    if not ray and (replicas is not None or autoscale is not None):
        raise BadInput("--replicas and --autoscale are of --ray.")
    if replicas is not None and autoscale is not None:
        raise BadInput("give --replicas or --autoscale, not both.")
    scale = None if autoscale is None else _scale(autoscale)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported, if it ever is

    def ready(address: str) -> None:
        notice(f"decodery serves {', '.join(configuration.names)} at {address}")

    if ray:
        with needs("decodery serve --ray", "serve,ray"):
            from decodery.integrations.ray import run as run_on_ray
        run_on_ray(configuration, replicas=1 if replicas is None else replicas, autoscale=scale, ready=ready)
        return
    with needs("decodery serve", "serve"):
        from decodery.serving.server import serve as run
    run(configuration, ready)


def _scale(text: str) -> tuple[int, int]:
    """The fewest and the most replicas. Raises BadInput."""
    fewest, colon, most = text.partition(":")
    if not colon or not fewest.isdecimal() or not most.isdecimal():
        raise BadInput(f"--autoscale takes the fewest and the most replicas, such as 1:4, not {text!r}.")
    return int(fewest), int(most)
