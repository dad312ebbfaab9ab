"""The page at /, what it is made of, and what the server tells it of settings and methods."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_models import KEY, Running, serving

from decodery.engine import registry
from decodery.engine.settings import declared
from decodery.sampling.steps import steps
from decodery.serving.fields import EVENTS
from decodery.serving.page import settings_told

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "decodery" / "serving" / "playground"
FILES = sorted(path.name for path in FOLDER.iterdir())


def test_the_page_and_its_files(server: Running) -> None:
    answer = httpx.get(server.address + "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text == (FOLDER / "index.html").read_text()
    for name in FILES:
        answer = httpx.get(f"{server.address}/playground/{name}")
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
        assert answer.headers["content-type"].startswith(kind[Path(name).suffix])
    for name in ("nothing.js", "..%2Fpage.py", "%2e%2e/page.py", "main", "../page.py", ""):
        assert httpx.get(f"{server.address}/playground/{name}").status_code == 404, name


def test_files_of_other_kinds_are_not_served(server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("__init__.py", "noext", "good.js"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr("decodery.serving.page.FILES", tmp_path)
    found = {
        name: httpx.get(f"{server.address}/playground/{name}").status_code
        for name in ("__init__.py", "noext", "good.js")
    }
    assert found == {"__init__.py": 404, "noext": 404, "good.js": 200}


def test_nothing_comes_from_elsewhere_and_no_text_is_html(server: Running) -> None:
    for path in ("/", "/playground/main.js"):
        headers = httpx.get(server.address + path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    for name in FILES:
        text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?://|//[a-z]+\.[a-z]|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text
        )
        assert len(text.splitlines()) <= 400, name
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", page)
    named = set(re.findall(r'(?:src|href)="/playground/([^"]+)"', page))
    named |= {name for path in FOLDER.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', path.read_text())}
    assert named == set(FILES) - {"index.html"}


def test_the_page_is_read_before_a_key_is_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODERY_API_KEY", KEY)
    with serving() as server:
        for path in ("/", "/playground/main.js"):
            assert httpx.get(server.address + path).status_code == 200
        for path in ("/v1/models", "/v1/decodery/settings", "/v1/decodery/methods", "/metrics", "/openapi.json"):
            assert httpx.get(server.address + path).status_code == 401
            assert httpx.get(server.address + path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        for path in ("/v1/decodery/events", "/v1/decodery/method"):
            assert httpx.post(server.address + path, json={}).status_code == 401


def test_a_server_may_offer_no_page() -> None:
    with serving(playground=False) as server:
        assert httpx.get(server.address + "/").status_code == 404
        assert httpx.get(server.address + "/playground/main.js").status_code == 404
        assert httpx.get(server.address + "/v1/decodery/settings").status_code == 200


def test_the_wheel_has_the_files() -> None:
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    before = os.getcwd()
    try:
        os.chdir(ROOT)
        included = {one.distribution_path for one in builders.WheelBuilder(str(ROOT)).recurse_included_files()}
    finally:
        os.chdir(before)
    assert {f"decodery/serving/playground/{name}" for name in FILES} <= included


# What it is told


def test_every_setting_is_told_with_what_it_may_be(server: Running) -> None:
    told = {one["name"]: one for one in httpx.get(server.address + "/v1/decodery/settings").json()["data"]}
    assert list(told) == [name for name in declared() if name in set(EVENTS.settings().values())]
    assert "echo" not in told
    for name, one in told.items():
        own = declared()[name]
        assert (one["help"], one["schema"]) == (own.help, own.kind.schema())
        assert one["option"] == (own.option[0] if own.option else None)
    assert told["temperature"]["default"] == 1.0
    assert told["max_new_tokens"]["default"] is None
    assert told["chance"]["default"] == "addressed"
    assert told["dry_base"]["default"] == 1.75
    assert told["momentum_resistance"]["default"] == [1.0, 3.0, 4.0, 5.0, 5.0]
    assert told["logit_bias"]["default"] == {}
    for step in steps().values():
        first, *others = (own.name for own in step.settings())
        assert told[first]["needs"] is None
        assert told[first]["greedy_only"] == step.greedy_only
        assert {told[other]["needs"] for other in others} <= {first}
    assert told["xtc_threshold"]["needs"] == "xtc_probability"
    assert told["seed"]["needs"] is None


def test_what_is_not_given_is_the_default_that_is_told(server: Running) -> None:
    body = {"prompt": "hello", "max_tokens": 12, "seed": 3, "method": "autoregressive"}
    # Steps that stand before others keep their place only where they are on, so only values without effect are compared.
    given = {
        one["name"]: one["default"]
        for one in settings_told()
        if one["name"] not in ("max_new_tokens", "seed", "logprobs")
        and one["needs"] is None
        and one["default"] is not None
    }
    path = server.address + "/v1/decodery/events"
    texts = [
        "".join(re.findall(r'"token_id":(\d+)', httpx.post(path, json={**body, **more}, timeout=120).text))
        for more in ({}, given)
    ]
    assert texts[0] == texts[1] != ""


def settle(server: Running, name: Any, **values: Any) -> dict[str, Any]:
    answer = httpx.post(server.address + "/v1/decodery/method", json={"name": name, "values": values})
    assert answer.status_code in (200, 400)
    return answer.json()


def test_a_method_is_written_with_what_acts(server: Running) -> None:
    told = settle(server, "token-recycling", k=4)
    assert told["method"] == "token-recycling(k=4)"
    assert told["exactness"] == "identical-to-plain"
    assert {"k", "nodes"} <= set(told["acts"])
    plain = settle(server, "sched")
    prophet = settle(server, "sched", shape="prophet")
    assert set(plain["acts"]) - set(prophet["acts"]) == {"patience", "max_change"}
    assert settle(server, "sched", shape="prophet", patience=3)["method"] == "sched(shape=prophet)"
    assert settle(server, "diverse-beam-search", groups=1, strength="0.5")["method"] == "diverse-beam-search(groups=1)"
    for info in registry.methods():
        told = settle(server, info.name)
        hidden = {item.name for item in registry.find(info.name).parameters() if item.names == "file"}
        assert set(told["acts"]) <= {item.name for item in info.parameters} - hidden
        assert told["method"] == info.name


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("token-recycling", {"k": 0}, "k must lie in 1..8"), ("token-recycling", {"q": 1}, "no parameter 'q'"),
        ("token-recyclin", {}, "did you mean"), (7, {}, "name must be"),
        ("cascade", {"table": "/etc/hostname"}, "no parameter"),
        ("best-of-n", {"method": "suffix-automaton(corpus=/etc/hostname)"}, "file of the server"),
        ("autoregressive", {"x": 1}, "no parameter 'x'; it has none."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(server: Running, name: Any, values: Any, says: str) -> None:
    told = settle(server, name, **values)
    assert says in told["error"]["message"]
    answer = httpx.post(server.address + "/v1/decodery/method", json={"name": "cascade", "values": [1]})
    assert answer.json()["error"]["param"] == "values"
    answer = httpx.post(server.address + "/v1/decodery/method", json={"name": "cascade", "more": 1})
    assert answer.json()["error"]["param"] == "more"


def test_models_tell_whether_they_know_chats(server: Running) -> None:
    [toy, stories] = httpx.get(server.address + "/v1/models").json()["data"]
    assert toy["decodery"]["chat"] == bool(server.lm().tokenizer.chat_template)
    assert stories["decodery"] == {"loaded": False} or stories["decodery"]["chat"] is False
