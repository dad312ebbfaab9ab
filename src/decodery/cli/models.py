"""`decodery models`: the models that are known and those that are here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from decodery.cli.console import print_json, print_line, print_table, size
from decodery.cli.options import JsonOption
from decodery.errors import BadInput

if TYPE_CHECKING:
    from decodery.models.store import ModelInfo

app = typer.Typer(invoke_without_command=True)


@app.callback()
def models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the models that are known by name, with their size and whether they are installed.

    Any folder with a checkpoint, any .gguf file and any owner/name of the Hugging Face hub can be used as well.
    decodery models remove NAME deletes an installed one.

    Example: `decodery models --json`
    """
    if context.invoked_subcommand is not None:
        return
    from decodery.models import store

    known = store.known_models()
    if as_json:
        print_json([_as_dict(model) for model in known])
        return
    print_table(
        ("name", "title", "parameters>", "licence", "installed>", "download>", "source"),
        [
            (
                Text(model.name, style="bold"),
                model.title,
                model.parameters or "–",
                model.licence,
                Text(size(model.bytes_on_disk), style="green") if model.installed else "no",
                size(model.download_bytes) if model.download_bytes else "–",
                model.source,
            )
            for model in known
        ],
    )


def _as_dict(model: ModelInfo) -> dict[str, object]:
    return {
        "name": model.name,
        "title": model.title,
        "licence": model.licence,
        "source": model.source,
        "parameters": model.parameters,
        "download_bytes": model.download_bytes,
        "installed": model.installed,
        "folder": None if model.folder is None else str(model.folder),
        "bytes_on_disk": model.bytes_on_disk,
    }


@app.command("remove")
def remove(
    name: Annotated[str, Argument(help="A name that decodery models lists as installed.")],
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an installed model from this machine; it can be fetched again.

    Example: `decodery models remove gemma3-270m --yes`
    """
    from decodery.models import store

    known = next((model for model in store.known_models() if model.name == name and model.bytes_on_disk), None)
    if known is not None and not yes:
        if not sys.stdin.isatty():
            raise BadInput(f"to remove {name} where nobody can be asked, add --yes.")
        if not typer.confirm(f"Remove {name} ({size(known.bytes_on_disk)})?"):
            print_line("nothing was removed.")
            return
    print_line(f"removed {name}: {size(store.remove(name))} freed.")
