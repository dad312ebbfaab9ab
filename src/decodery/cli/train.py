"""`decodery train`: runs the recipes that make what methods need."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text
from typer import Argument

from decodery.cli.console import print_line, print_table

SETTINGS: dict[str, Any] = {
    "add_help_option": False,  # --help behind a recipe's name is the recipe's own
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}
"""For the registration of the command: what follows the recipe's name is read by the recipe."""


def train(
    context: typer.Context,
    recipe: Annotated[str | None, Argument(metavar="RECIPE", help="Its name; none: list them.")] = None,
) -> None:
    """List the training recipes, or run one: decodery train RECIPE [OPTIONS]. --help behind its name lists its options.

    A recipe that was interrupted goes on where it was when it is run again with the same folder.

    Example: `decodery train diffusion-lists --folder work --artifact model`
    """
    from decodery.training.recipes import RECIPES, find

    if recipe in ("--help", "-h"):
        print_line(context.get_help())
        print_line(" --help, -h  Show this message; behind a recipe's name, its options.")
        return
    if recipe is None:
        print_table(("name", "what it makes"), [(Text(name, style="bold"), e.about) for name, e in RECIPES.items()])
        return
    find(recipe).run(context.args)
