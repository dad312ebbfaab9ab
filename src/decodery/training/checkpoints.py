"""Checkpoints of recipes: written whole or not at all, and continued by the same recipe alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from decodery.errors import BadInput

NAME = "checkpoint.pt"
RECIPE = "recipe.json"


def keep(folder: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a work folder. identity: what must be the same for it to be continued."""
    draft = (folder / NAME).with_suffix(".tmp")
    torch.save({"identity": identity, **state}, draft)
    os.replace(draft, folder / NAME)


def kept(folder: Path, identity: str, device: str | None = None) -> dict[str, Any] | None:
    """What `keep` wrote in a work folder; None where nothing is there. Raises BadInput where it is another recipe's."""
    if not (folder / NAME).exists():
        return None
    state: dict[str, Any] = torch.load(folder / NAME, weights_only=True, map_location=device)
    if state.get("identity") != identity:
        raise BadInput(f"the work folder {folder} holds the checkpoint of another recipe; give another folder.")
    return state


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What a part of a recipe's work gave: read where it was kept, else made and kept whole."""
    if path.exists():
        return torch.load(path, weights_only=True)
    made = make()
    torch.save(made, draft := path.with_suffix(".tmp"))
    os.replace(draft, path)
    return made


def same_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Note in a work folder whose files lie there. Raises BadInput where they are another recipe's."""
    path, told = folder / RECIPE, json.dumps(recipe, indent=1) + "\n"
    if not path.exists():
        path.write_text(told, "utf-8")
    elif path.read_text("utf-8") != told:
        raise BadInput(f"the work folder {folder} holds the work of another recipe; give another folder.")
