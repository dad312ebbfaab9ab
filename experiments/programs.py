"""What experiments on code share: arms that write the answer to a task, and whether it passes."""

from __future__ import annotations

from typing import Any

from decodery.evaluation.experiment import Figure
from decodery.evaluation.programs import ProgramTask
from decodery.language_model import LanguageModel
from decodery.replies import Reply

PASSED = Figure("pass@1", "passed", form=".1%", share=True)
ROWS_PER_TOKEN = Figure("rows/token", "written rows", per="written")
FORWARDS_PER_TOKEN = Figure("forwards/token", "written forwards", per="written")


def written(
    lm: LanguageModel, task: ProgramTask, tokens: int, method: Any = "autoregressive", **settings: Any
) -> dict[str, float]:
    """What became of an answer of at most so many tokens."""
    prompt = lm.encode(task.prompt + task.start)
    reply: Reply = lm.generate(prompt, method, max_new_tokens=tokens, stop=list(task.stops), **settings)
    ran, stats = task.run(reply.text), reply.stats
    return {
        "passed": float(ran.passed),
        "written": float(stats.new_tokens),
        "written rows": float(stats.rows - stats.prompt_tokens),
        "written forwards": float(stats.forwards),
    }
