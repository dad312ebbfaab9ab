"""A transformers tokenizer without transformers, for what happens at every start.

Reading a tokenizer through transformers takes longer than a small model's first token: most of it are imports. What stands
behind nearly all of its tokenizers is one object of the package `tokenizers`; the calls that decoding makes go straight to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAIN_CALLS = (
    *("encode", "_encode_plus", "decode", "_decode", "apply_chat_template", "get_chat_template"),
    *("convert_ids_to_tokens", "_convert_id_to_token", "get_vocab", "get_added_vocab", "__len__", "__call__"),
    *("added_tokens_decoder", "backend_tokenizer"),
)
"""Methods that a class of tokenizers must not have changed."""
PROBES = (
    "",
    " ",
    "The quick brown fox.",
    "  two  spaces\tand\n\nlines \r\n",
    "don't they'll I've 3.14159 1234567890",
    "größer Ångström 東京 한국어 العربية हिन्दी",
    "🙂🙃 \u0301e\u0301 \u200b\ufeff ﬁ ½",
    "def f(x):\n    return x ** 2  # comment",
    "<s></s><|im_start|>user<|endoftext|>[MASK]",
)
FACTS = (
    *("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id", "mask_token_id", "all_special_ids"),
    "clean_up_tokenization_spaces",
)


class LeanTokenizer:
    """The everyday calls of a transformers tokenizer. Whatever else is asked of it reads the whole tokenizer, which answers
    everything from then on."""

    def __init__(self, backend: Any, facts: dict[str, Any], read_whole: Callable[[], Any]):
        """backend: a `tokenizers.Tokenizer`. facts: see `lean_facts`. read_whole: gives the tokenizer that this stands for."""
        vars(self).update(_backend=backend, _facts=facts, _read_whole=read_whole, _whole=None)

    @property
    def whole(self) -> Any:
        """The transformers tokenizer."""
        if self._whole is None:
            vars(self)["_whole"] = self._read_whole()
        return self._whole

    def encode(self, text: Any, *others: Any, add_special_tokens: bool = True, **more: Any) -> Any:
        if self._whole is not None or others or more or type(text) is not str:
            return self.whole.encode(text, *others, add_special_tokens=add_special_tokens, **more)
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **more: Any) -> Any:
        plain = type(token_ids) is list and all(type(token) is int for token in token_ids)
        if self._whole is not None or more or not plain:
            return self.whole.decode(token_ids, skip_special_tokens=skip_special_tokens, **more)
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, conversation: Any, *others: Any, **more: Any) -> Any:
        template = self._facts["chat_template"]
        known = ("add_generation_prompt", "tokenize")
        rest = {key: value for key, value in more.items() if key not in known and (key, value) != ("tools", None)}
        plain = (
            isinstance(conversation, list) and conversation and all(type(message) is dict for message in conversation)
        )
        if self._whole is not None or others or rest or not plain or more.get("tokenize", True) or template is None:
            return self.whole.apply_chat_template(conversation, *others, **more)
        from transformers.utils.chat_template_utils import render_jinja_template

        written: Any = render_jinja_template(
            conversations=[[{k: v for k, v in message.items() if v is not None} for message in conversation]],
            chat_template=template,
            add_generation_prompt=more.get("add_generation_prompt", False),
            **self._facts["special_tokens_map"],
        )
        return written[0][0]

    def convert_ids_to_tokens(self, ids: Any, *others: Any, **more: Any) -> Any:
        several = type(ids) is list and all(type(token) is int for token in ids)
        if self._whole is not None or others or more or not (several or type(ids) is int):
            return self.whole.convert_ids_to_tokens(ids, *others, **more)
        return [self._backend.id_to_token(token) for token in ids] if several else self._backend.id_to_token(ids)

    def get_added_vocab(self) -> dict[str, int]:
        return {token.content: place for place, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        found: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` that does the work."""
        return self._backend if self._whole is None else self._whole.backend_tokenizer

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = (
            self._backend.get_vocab(with_added_tokens=True) if self._whole is None else self._whole.get_vocab()
        )
        return vocabulary

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True)) if self._whole is None else len(self._whole)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return self.whole(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        facts = vars(self)["_facts"]
        return facts[name] if name in facts and self._whole is None else getattr(self.whole, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.whole, name, value)


def lean_facts(tokenizer: Any) -> dict[str, Any] | None:
    """What `LeanTokenizer` must know of a transformers tokenizer beside its backend; None where it could not stand for it."""
    from transformers import PreTrainedTokenizerFast

    usual = PreTrainedTokenizerFast
    if not isinstance(tokenizer, usual) or not hasattr(tokenizer, "backend_tokenizer"):
        return None
    if any(getattr(type(tokenizer), call, None) is not getattr(usual, call, None) for call in PLAIN_CALLS):
        return None
    template = tokenizer.chat_template
    cleans = tokenizer.clean_up_tokenization_spaces and type(tokenizer.backend_tokenizer.model).__name__ != "BPE"
    cleans |= bool(getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False))
    if cleans or tokenizer.split_special_tokens or not (template is None or isinstance(template, str)):
        return None
    facts = {name: getattr(tokenizer, name) for name in FACTS}
    facts |= {"chat_template": template, "special_tokens_map": dict(tokenizer.special_tokens_map)}
    try:
        known: dict[str, Any] = json.loads(json.dumps(facts))
    except TypeError:
        return None
    return known


def write(tokenizer: Any, folder: Path) -> bool:
    """Keep what `read` needs, if a lean tokenizer gives what the whole one gives; whether it does."""
    from tokenizers import Tokenizer

    facts = lean_facts(tokenizer)
    if facts is None:
        return False
    tokenizer.encode("")  # truncation and padding are set with every call
    backend = tokenizer.backend_tokenizer.to_str()
    lean = LeanTokenizer(Tokenizer.from_str(backend), facts, lambda: tokenizer)
    if not _alike(lean, tokenizer):
        return False
    (folder / "tokenizer.json").write_text(backend, encoding="utf-8")
    (folder / "tokenizer_facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return True


def read(folder: Path, read_whole: Callable[[], Any]) -> LeanTokenizer | None:
    """The tokenizer that was kept in a folder; None where there is none."""
    if not (folder / "tokenizer_facts.json").is_file():
        return None
    from tokenizers import Tokenizer

    facts = json.loads((folder / "tokenizer_facts.json").read_text(encoding="utf-8"))
    return LeanTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), facts, read_whole)


def _alike(lean: LeanTokenizer, whole: Any) -> bool:
    """Whether two tokenizers do the same with some texts, tokens and conversations."""
    try:
        for text in PROBES:
            for special in (True, False):
                ids = whole.encode(text, add_special_tokens=special)
                if lean.encode(text, add_special_tokens=special) != ids:
                    return False
                if any(
                    lean.decode(ids, skip_special_tokens=skip) != whole.decode(ids, skip_special_tokens=skip)
                    for skip in (True, False)
                ):
                    return False
        if len(lean) != len(whole) or lean.get_vocab() != whole.get_vocab():
            return False
    except Exception:  # a text that it cannot say: whatever it raises then, it must go on raising
        return False
    if whole.chat_template is None:
        return True
    for roles in (["user"], ["system", "user"], ["user", "assistant", "user"]):
        chat = [{"role": role, "content": f" what\n{role} says <b> "} for role in roles]
        for prompt in (True, False):
            written = [_said(tokenizer, chat, prompt) for tokenizer in (lean, whole)]
            if written[0] != written[1]:
                return False
    return True


def _said(tokenizer: Any, chat: list[dict[str, str]], prompt: bool) -> str:
    """A conversation as text, or why the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False))
    except Exception as refused:  # templates raise what they like
        return f"{type(refused).__name__}: {refused}"
