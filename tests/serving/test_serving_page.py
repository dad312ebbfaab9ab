"""docs/serving.md and what lies in deploy/ are as the code has it."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

from decodery.serving import field_table
from decodery.serving.app import make_app
from decodery.serving.configuration import ServerConfiguration, read_file
from decodery.serving.service import Service

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"


def test_the_tables_are_those_of_the_code() -> None:
    """Where a declaration changed: DECODERY_UPDATE_API=1 pytest tests/serving/test_serving_page.py."""
    if os.environ.get("DECODERY_UPDATE_API"):
        PAGE.write_text(field_table.written(PAGE.read_text()))
    assert PAGE.read_text() == field_table.written(PAGE.read_text())
    for mark in field_table.TABLES:
        assert PAGE.read_text().count(f"<!-- {mark} -->") == 1


def test_the_page_names_every_route() -> None:
    app = make_app(Service(ServerConfiguration(), environment={}))
    paths = set(app.openapi()["paths"])
    named = set(re.findall(r"`(?:GET |POST )?(/[\w./{}]+)`", PAGE.read_text()))
    assert {path.replace("{name}", "NAME") for path in paths} <= named


def test_what_is_deployed_has_options_that_exist(command: Any) -> None:
    ServerConfiguration.of(read_file(ROOT / "deploy" / "server.toml"))
    unit = (ROOT / "deploy" / "decodery.service").read_text()
    [start] = re.findall(r"^ExecStart=\S+ (.*)$", unit, re.M)
    arguments = [
        str(ROOT / "deploy" / "server.toml") if word.startswith("/etc") else word for word in shlex.split(start)
    ]
    assert command(*arguments, "--print-config").code == 0
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    entry, default = (
        tomllib.loads(f"words = {words}")["words"] for words in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", text, re.M)
    )
    result = command(*entry[1:], *default, "--print-config")
    assert (result.code, tomllib.loads(result.out)["host"]) == (0, "0.0.0.0")
    stop = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)[0])
    assert stop > tomllib.loads((ROOT / "deploy" / "server.toml").read_text())["drain"]
