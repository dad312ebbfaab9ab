"""Models that come when they are asked for, and go where others need their memory; and what methods remember of sessions."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import httpx
import openai
import pytest
from serving_models import Running, serving, toy, wait_for

from decodery.errors import ModelNotReadable, NotEnoughMemory
from decodery.language_model import LanguageModel

BODY = {"prompt": "hello", "max_tokens": 4, "temperature": 0}


class Loader:
    """Counts what it loads, and holds up or fails what it is told to."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.told: dict[str, Any] = {}
        self.alive: dict[str, weakref.ref[LanguageModel]] = {}
        self.failing: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, name: str, **options: Any) -> LanguageModel:
        self.go_on.wait(120)
        if name in self.failing:
            raise ModelNotReadable(f"{name} cannot be loaded from /secret/{name}: it is broken.")
        self.told = options
        lm = toy(options.get("kv_budget"))
        self.loaded.append(name)
        self.alive[name] = weakref.ref(lm)
        return lm


def ask(server: Running, model: str, **more: Any) -> httpx.Response:
    return httpx.post(server.address + "/v1/completions", json={"model": model, **BODY, **more}, timeout=120)


def weights() -> int:
    lm = toy()
    return lm.network.parameters * lm.network.dtype.itemsize


def test_models_are_loaded_on_first_use_and_once() -> None:
    load = Loader()
    with serving(load, models=["first", "b=second", "c"]) as server:
        assert load.loaded == ["first"]
        assert ask(server, "second").status_code == 404  # it is called b
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(server, "b"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert load.loaded == ["first", "second"]
        assert httpx.post(server.address + "/v1/completions", json=BODY).json()["model"] == "first"
        listed = {model.id: model.decodery["loaded"] for model in server.client().models.list()}  # type: ignore[attr-defined]
        assert listed == {"first": True, "b": True, "c": False}


def test_the_least_recently_used_is_unloaded() -> None:
    load = Loader()
    room = 2 * (weights() + 1_000_000) + 1000
    with serving(load, models=["a", "b", "c"], memory=str(room), kv_budget="1MB") as server:
        for model in ("a", "b", "a", "c"):
            assert ask(server, model).status_code == 200
        assert sorted(server.service.models.loaded) == ["a", "c"]
        gc.collect()
        assert load.alive["b"]() is None  # nothing holds its memory
        assert load.loaded == ["a", "b", "c"]
        assert ask(server, "b").status_code == 200
        assert load.loaded == ["a", "b", "c", "b"]
        assert sorted(server.service.models.loaded) == ["b", "c"]
        engines = [thread.name for thread in threading.enumerate() if "engine" in thread.name]
        assert len(engines) == 2


def test_a_model_in_use_is_waited_for_and_not_taken_away() -> None:
    load = Loader()
    with serving(load, models=["a", "b"], memory=str(weights() + 40_000_000), kv_budget="39MB") as server:
        stream = server.client().completions.create(model="a", prompt="hello", max_tokens=400, stream=True)
        next(iter(stream))
        found: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: found.append(ask(server, "b")))
        waiting.start()
        wait_for(lambda: server.service.models.loaded["a"].leaving)
        late = threading.Thread(target=lambda: found.append(ask(server, "a")))  # who asks for it now comes after b
        late.start()
        text = "".join(chunk.choices[0].text for chunk in stream)
        assert len(text) >= 390
        waiting.join(120)
        late.join(120)
        assert [answer.status_code for answer in found] == [200, 200]
        assert load.loaded == ["a", "b", "a"]
        server.wait_idle()


def test_what_cannot_be_loaded_says_so_without_paths(caplog: pytest.LogCaptureFixture) -> None:
    load = Loader()
    load.failing.add("b")
    with serving(load, models=["a", "b"]) as server:
        answer = ask(server, "b")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
        assert "secret" not in answer.text
        assert "/secret/b" in caplog.text
        load.failing.clear()
        assert ask(server, "b").status_code == 200


def test_a_model_larger_than_the_memory() -> None:
    with (
        pytest.raises(NotEnoughMemory, match="the memory of all models is"),
        serving(Loader(), models=["a"], memory="100KB"),
    ):
        pass


def test_not_ready_until_the_first_model_is_there() -> None:
    """And alive before that. The server is run by hand, since the helper waits until it is ready."""
    from decodery.serving.configuration import ServerConfiguration
    from decodery.serving.server import make_server

    load, told = Loader(), []
    load.go_on.clear()
    server = make_server(ServerConfiguration.of({"models": ["a"], "port": 0}), told.append, load)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    assert httpx.get(server.address + "/health").status_code == 200
    answer = httpx.get(server.address + "/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
    assert told == []
    load.go_on.set()
    wait_for(lambda: bool(told))
    assert httpx.get(server.address + "/ready").status_code == 200
    assert told == [server.address]
    assert server._loop is not None
    server._loop.call_soon_threadsafe(server.stop)
    thread.join(120)
    assert not thread.is_alive()


def test_companions_are_lent_where_the_server_was_told_of_them() -> None:
    load = Loader()
    with serving(load, models=["a"], companions=["helper"]) as server:
        assert load.loaded == ["a", "helper"]
        answer = ask(server, "a", method="draft-model(draft=helper)")
        assert answer.json()["decodery"]["method"] == "draft-model(draft=helper)"
        assert answer.json()["choices"][0]["text"] == ask(server, "a").json()["choices"][0]["text"]
        refused = ask(server, "a", method="draft-model(draft=other)")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "method")
        assert load.loaded == ["a", "helper"]


def test_sessions_are_forgotten_the_oldest_first() -> None:
    with serving(max_sessions=2) as server:
        for session in ("a", "b", "a", "c"):
            assert ask(server, "toy", session=session, method="token-recycling").status_code == 200
        assert {place[0] for place in server.lm().memory if place[0] is not None} == {"a", "c"}  # type: ignore[index]


def test_sessions_are_those_of_a_key(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("anna secret-1\nbert secret-2\n")
    with serving(api_key_file=str(keys), key="secret-1") as server:
        for key in ("secret-1", "secret-2"):
            client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=key)
            client.completions.create(
                model="toy", prompt="hello", max_tokens=3, extra_body={"session": "s", "method": "token-recycling"}
            )
        found = {place[0] for place in server.lm().memory if place[0] is not None}  # type: ignore[index]
        assert found == {"anna/s", "bert/s"}


def test_what_concerns_models_is_told_to_them() -> None:
    load = Loader()
    told = {"dtype": "float32", "device": "cpu", "threads": 1, "fast": "off", "kv_budget": "3MB", "prefill_chunk": 7}
    with serving(load, models=["a"], **told) as server:
        assert load.told == told
        assert server.lm("a").budget.total == 3_000_000


def test_beginnings_of_prompts_are_kept_as_far_as_said() -> None:
    prompt = "the same long beginning of two prompts, which need not be read twice: "
    for size, kept in (("0", False), ("5MB", True)):
        with serving(prefix_cache=size, kv_budget="20MB") as server:
            cached = [
                ask(server, "toy", prompt=prompt + end).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                for end in ("one", "two")
            ]
            assert cached[0] == 0
            assert (cached[1] > 50) == kept
            server.wait_idle()
            assert (server.lm().budget.held > 0) == kept


def test_what_a_model_will_take_is_known_before_it_is_loaded() -> None:
    from decodery.loading import expected_bytes
    from decodery.models.store import resolve

    assert expected_bytes("stories-twin") == (resolve("stories-twin") / "model.safetensors").stat().st_size
