"""`decodery run`: a conversation with a model in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Option

from decodery.cli import options
from decodery.cli.chat_commands import Leave, Retry, obey
from decodery.cli.console import BYTE_ORDER_MARK, Bars, notice, remark
from decodery.cli.conversation import Conversation
from decodery.cli.live_text import LiveText, legend, statistic
from decodery.cli.options import MethodOption, ModelOptions, SettingOptions, check_early, with_option_groups
from decodery.cli.prompts import characters
from decodery.errors import BadInput, BadPrompt, DecoderyError

MAX_NEW_TOKENS = 512
"""Answers in a conversation are longer than continuations."""
QUOTES = '"""'


@with_option_groups
def run(
    model: ModelOptions,
    settings: SettingOptions,
    method: MethodOption = None,
    system: Annotated[str | None, Option("--system", metavar="TEXT", help="System message.")] = None,
) -> None:
    """Talk with a model in the terminal.

    Answers stream, with accepted drafted tokens in another shade. Ctrl-C stops an answer and keeps what there is; /help
    lists the commands, such as /method and /set. An answer has at most 512 tokens unless --max-new-tokens says
    otherwise. Into its standard input one can also pipe messages, one a line.

    Example: `decodery run --method "prompt-lookup" --temperature 0.7`
    """
    values = settings.given()
    values.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    named = check_early(method, values)
    lm = model.load()
    named = named or lm.default_method

    def load_another(name: str) -> object:
        with Bars(f"loading {name}") as progress:
            return options.load(name, model.dtype, model, progress)

    conversation = Conversation(lm, named, values, system)
    remark(f"{lm.name} · {named} · /help lists the commands, Ctrl-D leaves")
    if not conversation.has_template:
        notice(f"{lm.name} has no chat template: it continues the text that you and it write.")
    lines = _Lines()
    try:
        while (line := lines.next()) is not None:
            if not line.strip():
                continue
            try:
                if line.startswith("/"):
                    obey(conversation, line, load_another)
                    continue
                conversation.say(characters(line))
                _answer(conversation)
            except Retry:
                _answer(conversation)
            except DecoderyError as error:
                notice(str(error), style="red")
            except KeyboardInterrupt:
                remark("stopped.")
    except Leave:
        pass
    finally:
        lines.close()


def _answer(conversation: Conversation) -> None:
    live = LiveText()
    try:
        outcome = conversation.answer(live.follow)
    except BadPrompt as error:
        conversation.take_back()
        hint = " Begin anew with /reset, or ask for less with /set max_new_tokens." if conversation.messages else ""
        raise BadPrompt(f"{error}{hint}") from None
    except DecoderyError:
        conversation.take_back()
        raise
    live.end()
    if outcome.finish_reason == "cancelled":
        remark("stopped; the conversation keeps what there is.")
    elif outcome.finish_reason == "length":
        remark(f"cut after {len(outcome.token_ids)} tokens; /set max_new_tokens for more.")
    remark(statistic(outcome.stats, outcome.method, outcome.exactness))
    if live.drafted and conversation.totals.answers == 1:
        remark(legend())


class _Lines:
    """What the user types, with line editing and a history that outlives the program; or the lines of a pipe."""

    def __init__(self) -> None:
        self._typed = sys.stdin.isatty()
        self._history: str | None = None
        if self._typed:
            self._open_history()

    def _open_history(self) -> None:
        try:
            import readline
        except ImportError:  # some systems have none; then there is no editing
            return
        from decodery.models import store

        path = store.home() / "history"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                readline.read_history_file(path)
        except OSError:
            return  # a conversation without a history is still one
        readline.set_history_length(1000)
        self._history = str(path)

    def next(self) -> str | None:
        """The next message or command, None at the end. Several lines between triple quotes are one message."""
        line = self._read("> ")
        if line is None or not line.startswith(QUOTES):
            return line
        text = line.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            line = self._read("… ")
            if line is None:
                return text
            text += "\n" + line
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def _read(self, prompt: str) -> str | None:
        try:
            if self._typed:
                return input(prompt)
            line = sys.stdin.readline()
            return line.removeprefix(BYTE_ORDER_MARK).rstrip("\r\n") if line else None
        except (EOFError, KeyboardInterrupt):
            print()
            return None
        except UnicodeDecodeError as error:
            raise BadInput(f"standard input is not text in {error.encoding.upper()}.") from None

    def close(self) -> None:
        """Keep the history."""
        if self._history is not None:
            import readline

            try:
                readline.write_history_file(self._history)
            except OSError:
                return
