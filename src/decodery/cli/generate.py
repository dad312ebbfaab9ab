"""`decodery generate`: text for one prompt, or for a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from decodery.cli import canvas_view, jobs, tree_view
from decodery.cli.console import (
    check_writable,
    print_json,
    print_line,
    remark,
    visible,
    write_text,
    writing,
)
from decodery.cli.live_text import LiveText, legend, statistic
from decodery.cli.options import (
    JsonOption,
    MethodOption,
    ModelOptions,
    SettingOptions,
    check_early,
    with_option_groups,
    with_seed,
)
from decodery.cli.outcome import Outcome
from decodery.cli.prompts import as_conversation, read_lines, read_prompt, read_tools
from decodery.errors import BadInput, BadSetting
from decodery.models.kinds import Kind

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.replies import Reply


@with_option_groups
def generate(
    model: ModelOptions,
    settings: SettingOptions,
    prompt: Annotated[str | None, Argument(metavar="PROMPT", help="The text to continue; - is standard input.")] = None,
    file: Annotated[Path | None, Option("--file", "-f", help="Read the prompt from a text file.")] = None,
    prompts: Annotated[
        Path | None,
        Option(
            "--prompts",
            metavar="FILE",
            help='JSONL, per line {"prompt": …} or {"messages": …, "tools": …}; one result per line.',
        ),
    ] = None,
    batch_size: Annotated[int, Option("--batch-size", help="Lines of --prompts decoded together.")] = 8,
    into: Annotated[
        Path | None,
        Option(
            "--output",
            metavar="FILE",
            help="Add the results of --prompts to a file; what is there already is not decoded again.",
        ),
    ] = None,
    ray: Annotated[
        bool,
        Option("--ray", help="With --output: decode on a Ray cluster, the one that is there or one on this machine."),
    ] = False,
    workers: Annotated[int | None, Option("--workers", help="With --ray: how many workers.", show_default="1")] = None,
    chat: Annotated[bool, Option("--chat", help="The prompt is what a user says to the model.")] = False,
    system: Annotated[str | None, Option("--system", metavar="TEXT", help="System message; implies --chat.")] = None,
    tools: Annotated[
        Path | None,
        Option(
            "--tools", metavar="FILE", help="JSON schemas of what the model may call; a line's own tools go before."
        ),
    ] = None,
    method: MethodOption = None,
    n: Annotated[
        int, Option("--n", "-n", help="How many texts: independent samples, unless the method decides them together.")
    ] = 1,
    echo: Annotated[bool, Option("--echo", help="Begin the text with the prompt.")] = False,
    logprobs: Annotated[
        int | None,
        Option("--logprobs", help="With --json: log probabilities, and those of so many alternatives per token."),
    ] = None,
    show: Annotated[
        bool,
        Option(
            "--show",
            help="Draw how the text comes: the texts of a search, or samples, as a tree; of a masked-diffusion model the "
            "canvas, step by step, and of an insertion model the text as it grows.",
        ),
    ] = False,
    show_html: Annotated[
        Path | None, Option("--show-html", metavar="FILE", help="Write the filling as an animated HTML page.")
    ] = None,
    record: Annotated[
        Path | None,
        Option(
            "--record", metavar="FILE", help="Keep the run for `decodery counterfactual`; chance is structural then."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Generate text from a prompt, with any decoding method.

    The prompt is the argument, a file, or standard input. On a terminal the text streams, with accepted drafted tokens
    in another shade; into a pipe it goes plain. --json prints one object per text, with the statistics.

    Example: `decodery generate --chat "What is a prime number?" --method prompt-lookup --max-new-tokens 60`
    """
    if batch_size < 1:
        raise BadSetting(f"--batch-size must be at least 1, not {batch_size}.")
    if into is not None and prompts is None:
        raise BadSetting("--output keeps the results of --prompts; give both.")
    if (ray and into is None) or (workers is not None and not ray):
        raise BadSetting("--ray goes with --output FILE, and --workers with --ray.")
    if workers is not None and workers < 1:
        raise BadSetting(f"--workers must be at least 1, not {workers}.")
    if logprobs is not None and not as_json and prompts is None:
        raise BadSetting("--logprobs needs --json; plain text has no place for them.")
    if (show or show_html is not None) and (as_json or prompts is not None):
        raise BadSetting(
            "--show and --show-html follow one prompt as it is decoded, so they go without --json and --prompts."
        )
    if show_html is not None and n != 1:
        raise BadSetting("--show-html follows one canvas, so it goes without --n.")
    if record is not None and (prompts is not None or show or show_html is not None):
        raise BadSetting("--record keeps one run, so it goes without --prompts, --show and --show-html.")
    check_writable(show_html, record)
    values = settings.given()
    values.update({"n": n} if n != 1 else {}, **({"echo": True} if echo else {}))
    if logprobs is not None:
        values["logprobs"] = logprobs
    if record is not None:
        values.setdefault("chance", "structural")
    callable_tools = read_tools(tools)
    if prompts is not None:
        if prompt is not None or file is not None:
            raise BadInput("--prompts brings its own prompts; give no other prompt with it.")
        lines = read_lines(prompts)
        named = check_early(method, values)
        lines = jobs.conversations(lines, chat, system, callable_tools)
        if ray and into is not None:
            jobs.many_on_ray(model.given(), str(prompts), lines, named, values, batch_size, into, workers or 1)
            return
        lm = model.load()
        jobs.many(lm, str(prompts), lines, named, values, batch_size, into)
        return
    asked = as_conversation(read_prompt(prompt, file), chat, system)
    named = check_early(method, values)
    lm = model.load()
    text = lm.tokenize(asked, callable_tools, named)
    if record is not None:
        _check_recordable(lm, named, values)
    if show and show_html is None and Kind.NEXT_TOKEN in lm.network.kinds:
        _one_tree(lm, text, named, with_seed(values))
        return
    if show or show_html is not None:
        _one_canvas(lm, text, named, with_seed(values), show, show_html)
        return
    told = _one_as_json if as_json else _one_as_text
    replies = told(lm, text, named, with_seed(values))
    if record is not None:
        _write_record(lm, replies[0], values, record)


def _check_recordable(lm: LanguageModel, method: str | None, settings: dict[str, Any]) -> None:
    """Raise BadSetting or Refused where the run could not be recorded, before it begins."""
    from decodery.engine import registry
    from decodery.recorded_run import check_recordable

    check_recordable(settings, lm.network.vocabulary, registry.method(method or lm.default_method))


def _write_record(lm: LanguageModel, reply: Reply, settings: dict[str, Any], path: Path) -> None:
    from decodery.recorded_run import RecordedRun

    with writing(path):
        RecordedRun.of(lm, reply, settings).write(path)


def _one_as_text(lm: LanguageModel, prompt: list[int], method: str | None, settings: dict[str, Any]) -> list[Reply]:
    from decodery.engine.text import prompt_text

    stream = lm.stream(prompt, method, **settings)
    live = LiveText()
    interrupted = False
    echo = prompt_text(lm.tokenizer, lm.split_at_hole(prompt)[0]) if settings.get("echo") else ""
    try:
        live.follow(stream, echo)
    except KeyboardInterrupt:
        interrupted = True
    except Exception:
        if live.begun:
            live.end()
        raise
    live.end()
    if interrupted:
        remark("interrupted; the text above is what there was.")
    replies = stream.replies()
    for reply in replies:
        remark(statistic(reply.stats.as_dict(), reply.method, str(reply.exactness)))
    if live.drafted:
        remark(legend())
    if interrupted:
        raise typer.Exit(jobs.INTERRUPTED)
    return replies


def _one_tree(lm: LanguageModel, prompt: Any, method: str | None, settings: dict[str, Any]) -> None:
    """The texts of one prompt as a tree, and then the texts."""
    stream = lm.stream(prompt, method, **settings)
    interrupted = False
    try:
        tree_view.follow(stream, tree_view.TextTree(lm.tokenizer.decode))
    except KeyboardInterrupt:
        interrupted = True
    for place, reply in enumerate(stream.replies()):
        print_line(("---\n" if place else "") + visible(reply.text))
        remark(statistic(reply.stats.as_dict(), reply.method, str(reply.exactness)))
    if interrupted:
        remark("interrupted; the texts above are what there was.")
        raise typer.Exit(jobs.INTERRUPTED)


def _one_canvas(
    lm: LanguageModel, prompt: Any, method: str | None, settings: dict[str, Any], show: bool, page: Path | None
) -> None:
    """The filling of one canvas, or the growing of one text, drawn or written to a page, and then the text."""
    if Kind.NEXT_TOKEN in lm.network.kinds:
        raise BadSetting(f"{lm.name} is a causal model, which fills no canvas; --show alone draws its texts as a tree.")
    if settings.get("n", 1) != 1:
        raise BadSetting(f"--show follows one canvas or text, so of {lm.network.kinds.words} it goes without --n.")
    stream = lm.stream(prompt, method, **settings)
    filling = canvas_view.Filling(lm.tokenizer.decode)
    interrupted = False
    try:
        canvas_view.follow(stream, filling, show)
    except KeyboardInterrupt:
        interrupted = True
    [reply] = stream.replies()
    stats = reply.stats
    caption = (
        f"{lm.name} · {reply.method} · {stats.new_tokens} tokens in {stats.forwards} forwards, {stats.rows} positions"
    )
    if page is not None:
        asked = lm.tokenizer.decode(list(reply.prompt_token_ids), skip_special_tokens=True)
        write_text(page, canvas_view.page(filling, asked, caption))
    print_line(visible(reply.text))
    remark(caption)
    if interrupted:
        raise typer.Exit(jobs.INTERRUPTED)


def _one_as_json(lm: LanguageModel, prompt: Any, method: str | None, settings: dict[str, Any]) -> list[Reply]:
    stream = lm.stream(prompt, method, **settings)
    interrupted = False
    try:
        for _ in stream:
            pass
    except KeyboardInterrupt:
        interrupted = True
    replies = stream.replies()
    for reply in replies:
        print_json(Outcome.of(reply).as_dict(lm))
    if interrupted:
        raise typer.Exit(jobs.INTERRUPTED)
    return replies
