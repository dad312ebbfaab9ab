"""`decodery serve`: its configuration, and a real process that drains on SIGTERM."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_models import serving, wait_for
from serving_process import process

from decodery.errors import BadInput, BadSetting
from decodery.serving.configuration import ServerConfiguration, read_file, served_name
from decodery.serving.server import make_server


class TestConfiguration:
    def test_a_printed_configuration_is_read_back(self, tmp_path: Path) -> None:
        changed = ServerConfiguration.of(
            {
                "models": ["a", 'b="quoted"'], "memory": "2GB", "max-queue": 3, "timeout": 5, "log_json": True,
                "max_concurrent_per_key": 2, "cors_origins": ["https://a.example"], "prefix_cache": 0,
            }
        )  # fmt: skip
        path = tmp_path / "server.toml"
        path.write_text(changed.as_toml())
        assert ServerConfiguration.of(read_file(path)) == changed
        assert changed.max_queue == 3
        assert ServerConfiguration.of(tomllib.loads(ServerConfiguration().as_toml())) == ServerConfiguration()
        named = {field.name for field in dataclasses.fields(ServerConfiguration)}
        assert all(f"{name} =" in ServerConfiguration().as_toml() for name in named)

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"modles": ["a"]}, "did you mean models"), ({"models": "a"}, "list of strings"), ({"models": []}, "at least one"),
            ({"models": ["a", "x=b", "a"]}, "two models are called 'a'"), ({"port": 70_000}, "at most 65535"),
            ({"port": "8000"}, "a whole number"), ({"port": True}, "a whole number"),
            ({"memory": "much"}, "memory must be a size"),
            ({"max_concurrent": 0}, "at least 1"), ({"timeout": 0}, "at least 0.001"), ({"log_json": 1}, "true or false"),
            ({"request_metrics": "all"}, "none, summary, detailed"), ({"max-queue": 1, "max_queue": 2}, "given twice"),
            ({"models": [""]}, "list of strings"), ({"host": 7}, "a string"),
        ],
    )  # fmt: skip
    def test_what_cannot_be(self, values: Any, says: str) -> None:
        with pytest.raises(BadSetting, match=says):
            ServerConfiguration.of(values)

    def test_paths_are_not_told(self) -> None:
        assert served_name("/home/anna/models/story.gguf") == ("story.gguf", "/home/anna/models/story.gguf")
        assert served_name("~/models/story") == ("story", "~/models/story")
        assert served_name("owner/name") == ("owner/name", "owner/name")
        assert served_name("mine=/home/anna/x") == ("mine", "/home/anna/x")

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "server.toml"
        with pytest.raises(BadInput, match="cannot be read"):
            read_file(path)
        path.write_text("models = [")
        with pytest.raises(BadInput, match="no TOML"):
            read_file(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "at most 65535"),
        (["--memory", "much"], "memory must be a size"),
        (["--config", "/nowhere/server.toml"], "cannot be read"),
        (["--max-queue", "x"], "max-queue"),
    ],
)
def test_bad_options_end_with_2(command: Any, arguments: list[str], says: str) -> None:
    result = command("serve", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err


def test_options_win_over_the_file(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('models = ["a", "b"]\nport = 7000\nmax-queue = 5\n')
    result = command("serve", "--config", str(path), "--port", "7001", "--log-json", "--print-config")
    assert result.code == 0
    told = tomllib.loads(result.out)
    assert (told["models"], told["port"], told["max_queue"], told["log_json"]) == (["a", "b"], 7001, 5, True)
    result = command("serve", "--config", str(path), "--model", "c", "--no-check", "--print-config")
    told = tomllib.loads(result.out)
    assert (told["models"], told["port"], told["check"]) == (["c"], 7000, False)


def test_an_unknown_model_ends_with_2(command: Any) -> None:
    result = command("serve", "--model", "smollm3-135m", "--port", "0")
    assert result.code == 2
    assert "smollm2-135m" in result.err


def test_an_address_that_is_taken_ends_with_2(command: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command("serve", "--model", "stories-twin", "--port", str(port))
        assert result.code == 2
        assert f"127.0.0.1:{port} cannot be listened at" in result.err


def test_who_listens_to_everybody_without_keys_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    for host, key, warned in (
        ("0.0.0.0", None, True),
        ("127.0.0.2", None, False),
        ("::1", None, False),
        ("0.0.0.0", "k", False),
    ):
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DECODERY_API_KEY", key or "")
            make_server(ServerConfiguration.of({"host": host}), lambda address: None)
        assert ("asks for no API key" in caplog.text) == warned


def test_help_and_the_other_verbs_need_no_server() -> None:
    code = (
        "import sys\nfrom decodery.cli.main import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'fastapi', 'uvicorn', 'starlette', 'prometheus_client'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_without_the_extra_there_is_one_sentence(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("decodery.serving.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = command("serve")
    assert result.code == 2
    assert "pip install 'decodery[serve]'" in result.err


# A process of its own


def test_sigterm_lets_running_requests_finish() -> None:
    with process("--log-json", "--drain", "300") as (running, address, lines):
        body = {
            "prompt": "Once upon a time",
            "max_tokens": 800,
            "stream": True,
            "ignore_eos": True,
            "method": "autoregressive",
        }
        with httpx.stream("POST", address + "/v1/completions", json=body, timeout=120) as answer:
            parts = answer.iter_lines()
            next(parts)
            running.send_signal(signal.SIGTERM)
            end = time.monotonic() + 120
            while httpx.get(address + "/ready").status_code == 200:
                assert time.monotonic() < end
            refused = httpx.post(address + "/v1/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert int(refused.headers["retry-after"]) > 0
            assert httpx.get(address + "/health").status_code == 200
            told = [line for line in parts if line]
        assert told[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in told[-2]
        assert running.wait(120) == 0
        time.sleep(0.1)
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        [line] = [line for line in logged if line.get("status") == 200 and line["path"] == "/v1/completions"]
        assert (line["completion_tokens"], line["finish_reason"], line["model"]) == (800, "length", "stories-twin")
        assert not any("Once upon" in line for line in lines)


def test_what_does_not_finish_in_time_is_ended_and_told_so() -> None:
    with serving(drain=0.2, max_concurrent=1) as server:
        body = {"prompt": "hello", "max_tokens": 4000, "stream": True}
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(server.address + "/v1/completions", json=body, timeout=120))

        asking = [threading.Thread(target=ask) for _ in range(2)]
        gate, lm = server.service.models.loaded["toy"].gate, server.lm()
        for thread in asking:
            thread.start()
        wait_for(lambda: (gate.running, gate.waiting) == (1, 1))
        server.server.handle_exit(signal.SIGTERM, None)
        for thread in asking:
            thread.join(120)
        server.thread.join(120)
        assert not server.thread.is_alive()
        streamed, refused = sorted(answers, key=lambda answer: answer.status_code)
        assert (streamed.status_code, refused.status_code) == (200, 503)
        assert '"error"' in streamed.text.split("\n\n")[-3]
        assert lm.budget.held == 0


def test_a_second_signal_does_not_wait() -> None:
    with serving(drain=100) as server:
        stream = server.client().completions.create(model="toy", prompt="hello", max_tokens=4000, stream=True)
        next(iter(stream))
        server.server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: server.service.draining)
        assert server.thread.is_alive()
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(120)
        assert not server.thread.is_alive()
        for model in server.service.models.loaded.values():  # nobody was waited for, the end of the process included
            model.engine.stop()
