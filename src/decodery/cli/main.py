"""The command `decodery`: its verbs, and what happens to errors."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer import Option

from decodery._version import __version__
from decodery.cli import audit, frequencies, models, traps
from decodery.cli.acceptance import acceptance
from decodery.cli.attribute import attribute
from decodery.cli.bench import bench
from decodery.cli.check import check
from decodery.cli.console import notice
from decodery.cli.counterfactual import counterfactual
from decodery.cli.detect import detect
from decodery.cli.generate import generate
from decodery.cli.jobs import INTERRUPTED
from decodery.cli.methods import methods
from decodery.cli.next_byte import next_byte
from decodery.cli.pull import pull
from decodery.cli.race import race
from decodery.cli.run import run
from decodery.cli.serve import serve
from decodery.cli.suite import suite
from decodery.cli.train import SETTINGS as TRAIN
from decodery.cli.train import train
from decodery.cli.watermark import watermark
from decodery.errors import DecoderyError

BAD_INPUT = 2

app = typer.Typer(
    name="decodery",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    invoke_without_command=True,
)


@app.callback()
def decodery(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """The published decoding methods on real language models: one engine, side by side.

    Example: `decodery run`
    """
    if version:
        print(f"decodery {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


app.command("run")(run)
app.command("generate")(generate)
app.command("counterfactual")(counterfactual)
app.command("watermark")(watermark)
app.command("detect")(detect)
app.command("next-byte")(next_byte)
app.command("serve")(serve)
app.command("methods")(methods)
app.add_typer(models.app, name="models")
app.command("pull")(pull)
app.command("race")(race)
app.command("check")(check)
app.command("bench")(bench)
app.command("suite")(suite)
app.command("acceptance")(acceptance)
app.add_typer(audit.app, name="audit")
app.command("attribute")(attribute)
app.add_typer(traps.app, name="traps")
app.add_typer(frequencies.app, name="frequencies")
app.command("train", **TRAIN)(train)

USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)
"""Base of what Typer raises for a wrong option or argument. Newer versions of Typer carry their own Click."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 a claim was refuted, 2 something given was wrong, 130 interrupted."""
    # At the end the interpreter would look for garbage among all that goes with the process anyway, for most of a second.
    atexit.register(gc.freeze)
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without some character still shows the others
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="decodery", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except DecoderyError as error:
        notice(str(error), style="red")
        return BAD_INPUT
    except USAGE_ERROR as error:
        notice(_usage(error), style="red")
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough. Nothing may be flushed into the pipe when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _usage(error: Exception) -> str:
    """What is wrong with the options or arguments, and where to read more."""
    context: Any = getattr(error, "ctx", None)
    message = str(getattr(error, "format_message", error.__str__)()).strip()
    stop = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{stop} Try {context.command_path if context is not None else 'decodery'} --help."
