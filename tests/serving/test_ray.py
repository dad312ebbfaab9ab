"""decodery on a Ray of this machine: two replicas, one killed under load; jobs killed and gone on with. Skips without ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

PORT = 8571
ADDRESS = f"http://127.0.0.1:{PORT}"
ASKED = {"max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


def test_one_of_two_replicas_is_killed_and_no_request_is_lost() -> None:
    from decodery.integrations.ray import app
    from decodery.serving.configuration import ServerConfiguration

    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    configuration = ServerConfiguration(models=("stories-twin",), threads=1)
    serve.run(app(configuration, replicas=2, cpus=0.5), name="decodery")
    with httpx.Client(base_url=ADDRESS, timeout=120) as client:
        prompts = [f"Once upon a time there were {number} small frogs who" for number in range(24)]
        expected = [client.post("/v1/completions", json={**ASKED, "prompt": p}).json() for p in prompts]
        texts = [answer["choices"][0]["text"] for answer in expected]
        with client.stream("POST", "/v1/completions", json={**ASKED, "prompt": prompts[0], "stream": True}) as told:
            events = [json.loads(line[6:]) for line in told.iter_lines() if line.startswith("data: {")]
        assert "".join(one["text"] for event in events for one in event["choices"]) == texts[0]
        found: dict[int, Any] = {}

        def ask(number: int) -> None:
            place = number % len(prompts)
            found[number] = client.post("/v1/completions", json={**ASKED, "prompt": prompts[place]})

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(96)]
        for place, thread in enumerate(threads):
            thread.start()
            if place == 40:
                actors = [a for a in ray.util.list_named_actors(all_namespaces=True) if "#decodery#" in a["name"]]
                ray.kill(ray.get_actor(actors[0]["name"], namespace=actors[0]["namespace"]))
        for thread in threads:
            thread.join()
        assert len(actors) == 2
        assert [found[number].status_code for number in range(96)] == [200] * 96
        answers = [found[number].json()["choices"][0]["text"] for number in range(96)]
        assert answers == [texts[number % len(prompts)] for number in range(96)]
        refused = client.post("/v1/completions", json={"prompt": "x", "temperature": -1})
        assert refused.status_code == 400


def test_prompts_that_begin_alike_go_to_one_replica() -> None:
    with httpx.Client(base_url=ADDRESS, timeout=120) as client:
        said = "One day a girl named Lily went to the park with her dog and her friends. " * 12
        cached = []
        for end in ("She", "They", "The dog", "Then"):
            answer = client.post("/v1/completions", json={**ASKED, "prompt": said + end, "max_tokens": 2}).json()
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert min(cached[1:]) > 100


def test_a_job_is_killed_and_gone_on_with(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Once there were {n} birds."}) + "\n" for n in range(60)))
    run = "from decodery.cli.main import main; main()"
    command = [
        sys.executable, "-c", run, "generate", "--model", "stories-twin", "--prompts", str(prompts), "--output",
        str(out), "--ray", "--workers", "2", "--batch-size", "4", "--max-new-tokens", "60", "--seed", "1",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(1200):
        if out.exists() and len(out.read_text().splitlines()) >= 8:
            break
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    there = len(out.read_text().splitlines())
    assert 8 <= there < 60
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    lines = [json.loads(line)["line"] for line in out.read_text().splitlines()]
    assert sorted(lines) == list(range(1, 61))
