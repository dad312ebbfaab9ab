"""The playground in a real browser: real clicks, a real server, the default model."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playground_browser import Playground, start_browser
from serving_models import KEY, Running, serving

import decodery
from decodery.engine.events import Branched

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
Keys, ActionChains = webdriver.Keys, webdriver.ActionChains
pytestmark = pytest.mark.real_model
MODEL = "smollm2-135m"
QUESTION = "What is a prime number?"
REPEATING = "one two three four five one two three four five one two three"
LOOKUP = "prompt-lookup(adapt=False)"
TOKENS = 24
HARD = 'It\'s "$HOME" \\ `x` <b>bold</b> & 100 % über --all\nnext line?'
"""A prompt with signs that shells, Python, JSON and HTML read in their own ways."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = start_browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.quit()


@pytest.fixture(scope="module")
def served(driver: Any) -> Iterator[Running]:
    """One server for all tests, which asks for a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECODERY_API_KEY", KEY)
        with serving(decodery.load, models=(MODEL, "diffusion-stories"), prefix_cache="64MB") as running:
            yield running
            running.wait_idle()


@pytest.fixture
def page(driver: Any, served: Running) -> Iterator[Playground]:
    playground = Playground(driver, served.address)
    playground.open(KEY)
    playground.screen(1280, 1000)
    playground.write(playground.field("max_new_tokens"), str(TOKENS))
    yield playground
    assert playground.faults() == []


def chat(lm: Any, text: str, **settings: Any) -> Any:
    return lm.generate([{"role": "user", "content": text}], **{"max_new_tokens": TOKENS, "seed": 1, **settings})


def test_a_key_is_asked_for(driver: Any, served: Running) -> None:
    page = Playground(driver, served.address)
    page.driver.get(served.address)
    page.wait(lambda: page.one("#key").is_displayed())
    assert "no API key was given" in page.text("#failure")
    assert not page.one("#run").is_enabled()
    page.one("#key").send_keys("wrong\n")
    page.wait(lambda: "not known" in page.text("#failure"))
    page.one("#key").clear()
    page.one("#key").send_keys(KEY + "\n")
    page.wait(lambda: page.one("#run").is_enabled())
    assert page.text("#failure") == ""
    assert driver.execute_script("return [document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]


def draft(page: Playground) -> None:
    """A run whose drafts do not depend on how fast this machine is, and some of which are accepted."""
    page.prompt(REPEATING)
    page.click("#continue")
    page.method("prompt-lookup")
    page.choose("[data-name=adapt] select", "false")
    page.wait(lambda: page.text(".method .spec") == LOOKUP)
    page.run()


def test_a_text_and_how_its_tokens_came(page: Playground, served: Running) -> None:
    draft(page)
    reply = served.lm(MODEL).generate(REPEATING, LOOKUP, max_new_tokens=TOKENS, seed=1)
    assert page.said() == reply.text
    assert len(page.all(".panel .token")) == len(reply.token_ids) == TOKENS
    counts = {came: len(page.all(f".panel .token.{came}")) for came in ("drafted", "bonus", "plain")}
    accepted, drafted = map(int, re.findall(r"(\d+) of (\d+)", page.text(".numbers"))[0])
    assert counts["drafted"] == accepted == reply.stats.accepted > 0
    assert counts["bonus"] > 0
    assert drafted == reply.stats.drafted
    assert sum(counts.values()) == TOKENS
    legend = page.text(".legend")
    assert all((words in legend) == (counts[came] > 0) for came, words in
               (("drafted", "drafted and accepted"), ("bonus", "own after a draft"), ("plain", "plain")))  # fmt: skip
    assert page.text(".panel h3") == LOOKUP
    numbers = dict(
        zip((e.text for e in page.all(".numbers dt")), (e.text for e in page.all(".numbers dd")), strict=True)
    )
    assert float(numbers["speed"].removesuffix(" tokens/s")) > 0
    assert (numbers["tokens"], numbers["passes"]) == (str(TOKENS), str(reply.stats.forwards))


def test_what_is_known_of_a_token(page: Playground, served: Running) -> None:
    page.run()
    entry = chat(served.lm(MODEL), QUESTION, logprobs=5)
    tokens = page.all(".panel .token")
    assert not page.one("#token-card").is_displayed()
    ActionChains(page.driver).move_to_element(tokens[3]).perform()
    page.wait(lambda: page.one("#token-card").is_displayed())
    card = page.text("#token-card")
    assert f"token {entry.token_ids[3]}" in card
    assert re.search(r"\d+\.\d{3} s, in pass \d+", card)
    assert len(page.all("#token-card tr")) == 5
    assert len(page.all("#token-card tr.taken")) == 1
    share = 100 * math.exp(entry.logprobs[3].raw)
    told = float(re.findall(r"probability([\d.]+) %", card)[0])
    assert told == pytest.approx(share, rel=0.02)
    # The same by the keyboard alone.
    ActionChains(page.driver).move_to_element(page.one("h1")).perform()
    page.wait(lambda: not page.one("#token-card").is_displayed())
    assert len([token for token in tokens if token.get_attribute("tabindex") == "0"]) == 1
    page.driver.execute_script("arguments[0].focus()", tokens[0])
    keyboard = page.driver.switch_to.active_element
    keyboard.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element.get_attribute("data-index") == "2"
    assert page.one("#token-card").is_displayed()
    assert "how" in page.text("#voice")
    assert "probability" in page.text("#voice")
    page.driver.switch_to.active_element.send_keys(Keys.END)
    assert page.driver.switch_to.active_element.get_attribute("data-index") == str(TOKENS - 1)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.one("#token-card").is_displayed()


def test_the_tree_of_a_round(page: Playground) -> None:
    draft(page)
    told = page.text(".tree .words")
    drafted = int(re.findall(r"^(\d+) drafted", told)[0])
    accepted = int((re.findall(r"accepted (\d+):", told) or ["0"])[0])
    assert accepted > 0  # the round in which most was accepted is shown first
    assert len(page.all(".tree .node.accepted")) == accepted
    assert len(page.all(".tree .node.rejected")) == drafted - accepted
    assert len(page.all(".tree .node.root")) == 1
    assert page.one(".tree svg").get_attribute("aria-label") == f"Tree of the draft: {told}"
    slider = page.one(".tree input[type=range]")
    page.driver.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.HOME)
    assert page.text(".tree output").startswith("1 of ")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.text(".tree output").startswith("2 of ")
    # A click on a token goes to its round, whose tokens are marked.
    page.click(".token.drafted")
    first = page.one(".token.drafted").get_attribute("data-index")
    assert first in [token.get_attribute("data-index") for token in page.all(".token.current")]
    last = page.all(".token.drafted")[-1]
    page.driver.execute_script("arguments[0].focus()", last)
    last.send_keys(Keys.ENTER)
    assert last.get_attribute("data-index") in [one.get_attribute("data-index") for one in page.all(".token.current")]


def test_the_tree_of_a_search(page: Playground, served: Running) -> None:
    """All that beams have considered, run by run, and what of it is the text; nothing of it where nothing is searched."""
    page.write(page.field("max_new_tokens"), "8")
    page.prompt(REPEATING)
    page.click("#continue")
    page.method("beam-search")
    page.run()
    reply = served.lm(MODEL).generate(REPEATING, "beam-search", max_new_tokens=8, seed=1)
    texts: list[tuple[int, ...]] = []
    for event in reply.events:
        if isinstance(event, Branched):
            for token, parent in zip(event.tokens, event.parents, strict=True):
                texts.append((*(texts[parent] if parent >= 0 else ()), token))
    assert page.said() == reply.text
    assert page.text(".search .words") == f"{len(texts)} tokens considered, {len(reply.token_ids)} of them kept."
    assert page.one(".search svg").get_attribute("aria-label") == f"Tree of the search: {page.text('.search .words')}"
    kept = {tuple(reply.token_ids[:end]) for end in range(1, 9)}
    behind = {text: [one for one in texts if one[:-1] == text] for text in [(), *texts]}
    begins = [
        text for text in texts if len(behind[text[:-1]]) > 1 or (text in kept) != (text[:-1] in kept) or len(text) == 1
    ]
    assert len(page.all(".search .node.kept")) == sum(text in kept for text in begins) > 0
    assert len(page.all(".search .node.left")) == sum(text not in kept for text in begins) > 0
    assert len(page.all(".search .node.root")) == 1
    said = [one.get_property("textContent") for one in page.all(".search .node.kept title")]
    assert "".join(re.findall(r"^“(.*)”, of a text that is given", one)[0] for one in said) == reply.text.replace(
        "\n", "⏎"
    )
    leaves = [text for text in texts if not behind[text]]
    titles = [one.get_property("textContent") for one in page.all(".search .node.left title")]
    assert sum(bool(re.search(r"left, at -\d+\.\d\d$", one)) for one in titles) >= sum(
        one not in kept for one in leaves
    )
    assert not page.one(".tree").is_displayed()
    page.method("adadec")
    page.run()
    assert page.one(".search").is_displayed()
    assert len(page.all(".search .node.kept")) > 0
    page.method("autoregressive")
    page.run()
    assert not page.one(".search").is_displayed()


def test_two_methods_side_by_side(page: Playground) -> None:
    page.click("#compare")
    page.method("token-recycling")
    page.method("autoregressive", 1)
    page.run()
    assert page.text(".verdict strong") == f"Same tokens: all {TOKENS}."
    assert page.said(0) == page.said(1) != ""
    assert not page.all(".token.different")
    assert [row.text for row in page.all(".speeds th")] == ["token-recycling", "autoregressive"]
    speeds = [float(cell.text.split()[0]) for cell in page.all(".speeds .number")]
    assert all(speed > 0 for speed in speeds)
    assert {token.get_attribute("class") for token in page.all(".panel:nth-of-type(2) .token")} <= {
        "token plain", "token plain silent", "token plain blank",
    }  # fmt: skip
    page.method("contrastive-search", 1)
    page.prompt("Write a short story about a fox.")
    page.run()
    assert page.text(".verdict strong").startswith("Not the same tokens: from token ")
    assert "writes other texts on purpose" in page.text(".verdict")
    at = int(re.findall(r"from token (\d+)", page.text(".verdict"))[0]) - 1
    same = [len(page.all(f".panel:nth-of-type({panel}) .token:not(.different)")) for panel in (1, 2)]
    assert same == [at, at]


def test_a_canvas_that_fills(page: Playground, served: Running) -> None:
    page.choose("#model", "diffusion-stories")
    if page.one("#load").is_displayed():
        page.click("#load")
        page.wait(lambda: not page.one("#load").is_displayed())
    assert page.one("#continue").is_selected()
    assert not page.one("#chat").is_enabled()
    page.prompt("Once upon a time")
    page.run()
    reply = served.lm("diffusion-stories").generate("Once upon a time", max_new_tokens=TOKENS, seed=1)
    assert page.said() == reply.text
    cells = len(reply.stats.step_of)
    assert len(page.all(".cell")) == len(page.all(".cell.filled")) == cells
    steps = sorted({step for step in reply.stats.step_of if step >= 0})
    slider = page.one(".filling input[type=range]")
    assert slider.get_attribute("max") == str(len(steps))
    slider.send_keys(Keys.HOME)
    assert len(page.all(".cell.filled")) == 0
    slider.send_keys(Keys.ARROW_RIGHT)
    first = [offset for offset, step in enumerate(reply.stats.step_of) if step == steps[0]]
    assert len(page.all(".cell.filled.now")) == len(first)
    assert page.text(".filling output").startswith(f"1 of {len(steps)}, ")
    page.click(".filling button")
    page.wait(lambda: len(page.all(".cell.filled")) >= 3)
    assert page.text(".filling button") == "Pause"
    page.click(".filling button")
    assert page.text(".filling button") == "Play"
    assert set(page.text(".legend").split()) >= {"step", "early", "late"}
    assert len(page.all(".token.canvas")) == len(reply.token_ids)
    page.choose("#model", MODEL)
    assert page.one("#chat").is_selected()


def test_only_what_acts_is_offered(page: Playground) -> None:
    assert page.shown("temperature")
    assert page.shown("momentum_alpha")
    assert not page.shown("momentum_k")
    page.write(page.field("momentum_alpha"), "0.2")
    assert page.shown("momentum_k")
    page.write(page.field("temperature"), "0.7")
    assert not page.shown("momentum_alpha")
    assert not page.shown("momentum_k")
    assert not page.shown("xtc_threshold")
    page.write(page.field("xtc_probability"), "0.5")
    assert page.shown("xtc_threshold")
    command = page.one("#command").get_property("value")
    assert '"temperature":0.7' in command
    assert '"xtc_probability":0.5' in command
    assert "momentum" not in command
    page.method("diverse-beam-search")
    assert not page.shown("temperature")
    page.wait(lambda: page.shown("groups"))
    assert page.field("groups").get_attribute("min") == "1"
    page.write(page.field("groups"), "1")
    page.wait(lambda: not page.shown("strength"))
    assert page.text(".method .spec") == "diverse-beam-search(groups=1)"
    page.method("cascade")
    assert page.shown("nodes")
    assert not page.shown("table")  # it names a file of the server


def test_what_is_wrong_is_said_where_it_stands(page: Playground) -> None:
    page.method("token-recycling")
    page.write(page.field("k"), "99")
    page.wait(lambda: "k must lie in 1..8" in page.text(".method > .fault"))
    page.click("#run")
    assert "k must lie in 1..8" in page.text("#failure")
    page.write(page.field("k"), "4")
    page.wait(lambda: page.text(".method .spec") == "token-recycling(k=4)")
    page.write(page.field("top_p"), "1.5")
    page.click("#run")
    page.wait(lambda: "at most 1" in page.text("[data-name=top_p] .fault"))
    assert page.field("top_p").get_attribute("aria-invalid") == "true"
    assert page.driver.switch_to.active_element == page.field("top_p")
    page.write(page.field("top_p"), "0.9")
    assert page.field("top_p").get_attribute("aria-invalid") == "false"
    page.write(page.field("logit_bias"), "{")
    page.click("#run")
    assert page.text("[data-name=logit_bias] .fault") == "logit_bias must be JSON."


def test_values_of_every_kind_reach_the_server(page: Playground, served: Running) -> None:
    said = {
        "stop": "and\nor", "stop_token_ids": "30, 28", "logit_bias": '{"30": -5}', "bad_words": "number", "min_new_tokens": "8",
        "processors": '[{"name": "forbidden-tokens", "token_ids": [253]}]', "order": "vllm", "max_new_tokens": "20",
        "seed": "7", "temperature": "0.9", "chance": "gumbel", "momentum_resistance": None, "top_k": "40",
    }  # fmt: skip
    for name, text in said.items():
        if text is not None:
            page.write(page.field(name), text)
    page.click("[data-name=ignore_eos] input")
    page.run()
    reply = chat(
        served.lm(MODEL), QUESTION, stop=["and", "or"], stop_token_ids=[30, 28], logit_bias={30: -5.0}, bad_words=["number"],
        min_new_tokens=8, order="vllm", max_new_tokens=20, seed=7, temperature=0.9, chance="gumbel", top_k=40,
        ignore_eos=True, processors=[{"name": "forbidden-tokens", "token_ids": [253]}],
    )  # fmt: skip
    assert page.said() == reply.text != ""


def test_the_same_elsewhere(page: Playground, served: Running, command: Any, monkeypatch: Any, capsys: Any) -> None:
    lm = served.lm(MODEL)
    page.prompt(HARD)
    page.method("token-recycling")
    page.write(page.field("k"), "4")
    page.wait(lambda: page.text(".method .spec") == "token-recycling(k=4)")
    for name, text in (
        ("max_new_tokens", "8"), ("temperature", "0.8"), ("seed", "-3"), ("top_k", "50"), ("stop", "Q'\"$x\n\\n"),
        ("logit_bias", '{"30": -2.5}'),
    ):  # fmt: skip
        page.write(page.field(name), text)
    monkeypatch.setenv("DECODERY_API_KEY", KEY)
    monkeypatch.setattr("decodery.load", lambda name: {MODEL: lm}[name], raising=False)
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: {MODEL: lm}[name])
    for reading in ("chat", "continue"):
        page.click(f"#{reading}")
        page.run()
        written = {}
        for way in ("curl", "client", "python", "shell"):
            page.click(f"input[name=way][value={way}]")
            written[way] = page.one("#command").get_property("value")
            assert KEY not in written[way]
        expected = page.said()
        assert expected
        assert _curled(written["curl"]) == expected
        for way in ("client", "python"):
            capsys.readouterr()
            exec(compile(written[way], way, "exec"), {})
            assert capsys.readouterr().out == expected + "\n", way
        called = command(*_words("decodery", written["shell"]))
        assert (called.code, called.out) == (0, expected + "\n"), called.err


def _words(program: str, line: str) -> list[str]:
    """What a shell hands to a program."""
    script = f"{program}() {{ printf '%s\\0' \"$@\"; }}\n{line}\n"
    told = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    return told.stdout.split("\0")[:-1]


def _curled(line: str) -> str:
    """The text that a curl command gives."""
    words = _words("curl", line)
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    answer = httpx.post(words[0], content=words[words.index("-d") + 1].encode(), headers=headers, timeout=60)
    [choice] = answer.json()["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def test_a_text_is_never_html(page: Playground, served: Running) -> None:
    lm = served.lm(MODEL)
    ids = lm.encode("<img src=x onerror=alert(1)><b>")
    page.prompt("<script>document.title = 'taken'</script>")
    page.write(page.field("allowed_token_ids"), ", ".join(map(str, ids)))
    page.click("#compare")
    page.run()
    assert "<" in page.said()
    assert page.driver.title == "decodery playground"
    for selector in ("#results img", "#results b", "#results script"):
        assert not page.all(selector)
    assert page.driver.execute_script(
        "try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name }"
    ) == "TypeError"  # fmt: skip
    assert any("TrustedHTML" in line for line in page.faults())


def test_a_run_can_be_stopped(page: Playground, served: Running) -> None:
    page.write(page.field("max_new_tokens"), "2000")
    page.click("[data-name=ignore_eos] input")
    page.click("#run")
    page.wait(lambda: page.all(".panel .token"))
    assert not page.one("#run").is_enabled()
    page.click("#stop")
    page.wait(lambda: page.one("#run").is_enabled())
    assert page.text(".panel .state") == "stopped"
    served.wait_idle()


def test_keyboard_labels_and_one_column_on_phones(page: Playground) -> None:
    unnamed = page.driver.execute_script(
        "return [...document.querySelectorAll('input, select, textarea')].filter(one => !one.labels.length).map(one => one.id)"
    )
    assert unnamed == []
    assert page.driver.execute_script(
        "return [...document.querySelectorAll('[tabindex]')].every(one => one.tabIndex <= 0)"
    )
    assert page.driver.execute_script("return document.documentElement.lang") == "en"
    page.screen(390, 844)
    page.write(page.field("max_new_tokens"), "8")
    page.one("#prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("#status").startswith("Done"))
    wide = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390
    assert len(page.all(".panel .token")) == 8
    tops = [page.one(selector).rect["y"] for selector in ("#form", "#results")]
    assert tops[0] < tops[1]
    assert page.driver.execute_script("return document.getElementById('results').getBoundingClientRect().top") < 844 / 2


CONTRAST = """
const channel = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(value => channel(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = one => {
  for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
};
return [...document.querySelectorAll('body *')].filter(one =>
  one.offsetParent && !one.disabled && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
).map(one => {
  const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), one.className || one.id || one.tagName];
}).filter(([ratio]) => ratio < 4.5);
"""
"""Texts whose contrast with what is behind them is less than WCAG asks for."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_can_be_read(page: Playground, dark: bool) -> None:
    page.screen(1280, 1000, dark=dark)
    draft(page)
    assert page.all(".token.drafted")
    assert json.dumps(page.driver.execute_script(CONTRAST)) == "[]"
    paper = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == dark
