"""`decodery pull`: fetch a model."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from decodery.cli.console import Bars, print_json, print_line, size
from decodery.cli.options import DEFAULT_MODEL, JsonOption


def pull(
    name: Annotated[
        str, Argument(help="A name from decodery models, owner/name on the Hugging Face hub, or a .gguf file.")
    ] = DEFAULT_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model and check it against its checksum, so that it loads fast later.

    What is here already is not fetched again; an interrupted download goes on where it stopped.

    Example: `decodery pull smollm2-135m`
    """
    from decodery.models import store
    from decodery.models.progress import bytes_under

    with Bars(f"fetching {name}") as progress:
        folder = store.resolve(name, progress=progress)
    on_disk = bytes_under(folder)
    if as_json:
        print_json({"name": name, "folder": str(folder), "bytes_on_disk": on_disk})
    else:
        print_line(f"{name} is here: {folder} ({size(on_disk)})")
