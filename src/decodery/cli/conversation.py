"""A conversation with a model: what was said, how the next answer is decoded, and what the answers cost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.cli.console import write_text
from decodery.cli.options import with_seed
from decodery.cli.outcome import Outcome
from decodery.errors import BadInput, BadSetting
from decodery.text_files import read_text

if TYPE_CHECKING:
    from decodery.engine.events import Event
    from decodery.language_model import LanguageModel

NOT_IN_A_CHAT = {
    "n": "an answer is one sample",
    "echo": "the conversation is there to read",
    "logprobs": "the terminal does not show them",
}


@dataclass
class Totals:
    """Sums over the answers of a conversation."""

    answers: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def add(self, stats: dict[str, Any]) -> None:
        """Count one answer."""
        self.answers += 1
        self.new_tokens += stats["new_tokens"]
        self.drafted += stats["drafted"]
        self.accepted += stats["accepted"]
        self.seconds += stats["seconds"]


@dataclass
class Conversation:
    """The state of `decodery run`.

    settings: as the user gave them. messages: without the system message. Where the model has no chat template, the
    messages are one running text that the model continues.
    """

    lm: LanguageModel
    method: str
    settings: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    last: Outcome | None = None
    totals: Totals = field(default_factory=Totals)

    @property
    def has_template(self) -> bool:
        """Whether the model knows conversations."""
        return bool(getattr(self.lm.tokenizer, "chat_template", None))

    def prompt(self) -> Any:
        """What the model is given for its next answer."""
        if self.has_template:
            system = [{"role": "system", "content": self.system}] if self.system is not None else []
            return [*system, *self.messages]
        return "\n".join([*([self.system] if self.system else []), *(message["content"] for message in self.messages)])

    def answer(self, show: Callable[[Iterable[Event]], None]) -> Outcome:
        """Decode the answer to the last message while `show` follows it, and add it to the conversation.

        After Ctrl-C the partial answer is kept, as cancelled. Raises what `LanguageModel.stream` raises; then nothing
        is added.
        """
        prompt, settings = self.prompt(), with_seed(self.settings)
        stream = self.lm.stream(prompt, self.method, **settings)
        with contextlib.suppress(KeyboardInterrupt):  # the outcome says that it was cancelled
            show(stream)
        outcome = Outcome.of(stream.replies()[0])
        self.messages.append({"role": "assistant", "content": outcome.text})
        self.last = outcome
        self.totals.add(outcome.stats)
        return outcome

    def say(self, text: str) -> None:
        """Add what the user says."""
        self.messages.append({"role": "user", "content": text})

    def take_back(self) -> None:
        """Remove the last message."""
        self.messages.pop()

    def set(self, name: str, value: Any) -> None:
        """Change a setting; None gives it its default back. Raises BadSetting."""
        from decodery.engine.settings import Settings, aliases

        ours = aliases().get(name.replace("-", "_"), name.replace("-", "_"))
        if ours in NOT_IN_A_CHAT:
            raise BadSetting(f"{ours} cannot be set in a conversation: {NOT_IN_A_CHAT[ours]}.")
        changed = {key: item for key, item in self.settings.items() if key != ours}
        if value is not None:
            changed[ours] = value
        Settings.of({ours: value, **changed} if value is None else changed, self.lm.network.vocabulary)
        self.settings = changed

    def reset(self) -> None:
        """Forget what was said; the system message and the settings stay."""
        self.messages, self.last, self.totals = [], None, Totals()

    def save(self, path: Path) -> None:
        """Write the conversation to a JSON file."""
        value = {
            "model": self.lm.name,
            "method": self.method,
            "settings": self.settings,
            "system": self.system,
            "messages": self.messages,
        }
        write_text(path, json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")

    def load(self, path: Path) -> None:
        """Take what was said, and the system message, from a saved conversation. Raises BadInput."""
        try:
            value = json.loads(read_text(path))
        except (json.JSONDecodeError, RecursionError):
            raise BadInput(f"{path} is not a saved conversation: it is not JSON.") from None
        messages = value.get("messages") if isinstance(value, dict) else None
        sound = isinstance(messages, list) and all(
            isinstance(message, dict)
            and message.get("role") in ("user", "assistant")
            and isinstance(message.get("content"), str)
            for message in messages
        )
        system = value.get("system") if isinstance(value, dict) else None
        if not sound or not isinstance(system, str | None):
            raise BadInput(f"{path} is not a saved conversation: it has no list of messages with role and content.")
        self.reset()
        self.system = system
        assert isinstance(messages, list)
        self.messages = [{"role": message["role"], "content": message["content"]} for message in messages]
