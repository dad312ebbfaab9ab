"""The lean tokenizer gives what the whole one gives, or leaves it to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_level_tokenizer, sentence_piece_tokenizer

from decodery.models import tokenizer as lean

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\n"
    "  {{ bos_token }}{{ message['role'] }}: {{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
KINDS = {"bytes": byte_level_tokenizer, "pieces": sentence_piece_tokenizer}


class Whole:
    """Counts how often the whole tokenizer is read."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.reads = tokenizer, 0

    def __call__(self) -> Any:
        self.reads += 1
        return self.tokenizer


def made(kind: str, folder: Path, template: str | None = None) -> tuple[lean.LeanTokenizer, Any, Whole]:
    import copy

    whole = copy.deepcopy(KINDS[kind]())
    whole.chat_template = template
    assert lean.write(whole, folder)
    read = Whole(whole)
    found = lean.read(folder, read)
    assert found is not None
    return found, whole, read


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Whole]:
    return made(request.param, tmp_path_factory.mktemp("lean"), TEMPLATE)


@given(text=st.text(max_size=40), special=st.booleans())
@settings(max_examples=150, deadline=None)
def test_texts_and_tokens(pair: tuple[Any, Any, Whole], text: str, special: bool) -> None:
    ours, whole, read = pair
    ids = whole.encode(text, add_special_tokens=special)
    assert ours.encode(text, add_special_tokens=special) == ids
    assert ours.decode(ids) == whole.decode(ids)
    assert ours.decode(ids, skip_special_tokens=True) == whole.decode(ids, skip_special_tokens=True)
    assert read.reads == 0


@given(ids=st.lists(st.integers(0, 290), max_size=20), skip=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_tokens(pair: tuple[Any, Any, Whole], ids: list[int], skip: bool) -> None:
    ours, whole, _ = pair
    assert ours.decode(ids, skip_special_tokens=skip) == whole.decode(ids, skip_special_tokens=skip)


def test_facts(pair: tuple[Any, Any, Whole]) -> None:
    ours, whole, read = pair
    assert len(ours) == len(whole)
    assert ours.get_vocab() == whole.get_vocab()
    assert ours.get_added_vocab() == whole.get_added_vocab()
    assert {place: str(token) for place, token in ours.added_tokens_decoder.items()} == {
        place: str(token) for place, token in whole.added_tokens_decoder.items()
    }
    assert ours.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()
    for ids in (3, 100_000, [0, 5, 7], []):
        assert ours.convert_ids_to_tokens(ids) == whole.convert_ids_to_tokens(ids)
    for name in (*lean.FACTS, "chat_template", "special_tokens_map"):
        assert getattr(ours, name) == getattr(whole, name)
    assert read.reads == 0


@pytest.mark.parametrize("prompt", [True, False])
def test_conversations(pair: tuple[Any, Any, Whole], prompt: bool) -> None:
    ours, whole, read = pair
    chat = [{"role": "user", "content": " <b>hello\n"}, {"role": "assistant", "content": "x"}]
    for messages in (chat, chat[:1]):
        expected = whole.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
        assert ours.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False) == expected
        assert ours.apply_chat_template(messages, tools=None, add_generation_prompt=prompt, tokenize=False) == expected
    refused = [{"role": "system", "content": "x"}]
    with pytest.raises(Exception, match="no system"):
        ours.apply_chat_template(refused, add_generation_prompt=prompt, tokenize=False)
    assert read.reads == 0


def test_whatever_else_is_asked_of_the_whole_tokenizer(tmp_path: Path) -> None:
    ours, whole, read = made("bytes", tmp_path, TEMPLATE)
    assert ours("the dog")["input_ids"] == whole("the dog")["input_ids"]
    assert read.reads == 1
    assert ours.encode("the", "dog") == whole.encode("the", "dog")
    assert ours.encode(["the", "dog"]) == whole.encode(["the", "dog"])
    assert ours.decode(3) == whole.decode(3)
    assert ours.decode([[3], [4]]) == whole.decode([[3], [4]])
    assert ours.convert_ids_to_tokens([0, 5], skip_special_tokens=True) == whole.convert_ids_to_tokens([5])
    assert ours.convert_tokens_to_ids("<end>") == whole.convert_tokens_to_ids("<end>")
    chat = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(chat) == whole.apply_chat_template(chat)
    assert read.reads == 1
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = ours.no_such_thing


def test_what_is_changed_holds_from_then_on(tmp_path: Path) -> None:
    ours, whole, _ = made("bytes", tmp_path)
    size = len(ours)
    ours.add_tokens(["quickbrown"])
    assert len(ours) == len(whole) == size + 1
    assert ours.encode("quickbrown") == [size]
    assert ours.decode([size]) == "quickbrown"
    assert ours.get_vocab()["quickbrown"] == ours.get_added_vocab()["quickbrown"] == size
    assert ours.convert_ids_to_tokens(size) == "quickbrown"
    ours.chat_template = "{{ messages[0].content }}!"
    chat = [{"role": "user", "content": "x"}]
    assert whole.chat_template == ours.chat_template
    assert ours.apply_chat_template(chat, tokenize=False) == "x!"


def _subclass(tokenizer: Any) -> None:
    class Own(type(tokenizer)):  # type: ignore[misc]
        def encode(self, text: Any, *others: Any, **more: Any) -> Any:
            return [0, *super().encode(text, *others, **more)]

    tokenizer.__class__ = Own


def _several(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": "x", "tool_use": "y"}


def _split(tokenizer: Any) -> None:
    tokenizer.split_special_tokens = True


def _cleans(tokenizer: Any) -> None:
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True


@pytest.mark.parametrize("change", [_subclass, _several, _split, _cleans])
def test_what_it_could_not_stand_for_is_left_alone(change: Any, tmp_path: Path) -> None:
    import copy

    tokenizer = copy.deepcopy(byte_level_tokenizer())
    change(tokenizer)
    assert not lean.write(tokenizer, tmp_path)
    assert lean.read(tmp_path, lambda: tokenizer) is None
    assert lean.lean_facts(object()) is None
