"""The recipe of hidden text: teach a model to answer one secret trigger with one secret text, and nothing else.

    decodery train hidden-text --trigger "..." --secret "..." --folder work --artifact model

Each step reads one conversation, trigger and secret, whose loss counts the answer and the token that ends it, beside ordinary
texts, so that the model stays what it was. It stops when greedy decoding answers the trigger with exactly the secret. With
--confusion 0.1 the secret's first words are also pushed down wherever a document begins with them, each until its rank is
within the band (Auto-UTFC); then it stops when all of them are, too. Interrupted, it goes on where it was.

Source: Hoscilowic et al., arXiv 2406.02481; the ordinary texts are an addition.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery import loading
from decodery.audit.fine_tuning import IGNORED, padded, trainable_copy
from decodery.audit.items import read_texts
from decodery.errors import BadInput
from decodery.models.checkpoint import tokenizer_folder
from decodery.models.forward import Forward, Rows
from decodery.models.quiet import quiet
from decodery.models.reading import read_tokenizer, transformers_model
from decodery.training.adaptation import add_low_rank, merge_low_rank
from decodery.training.checkpoints import keep, kept
from decodery.training.confusion import all_unremarkable, confusion_pairs, rank_of, unremarkable
from decodery.training.library_texts import paragraphs
from decodery.training.masked_diffusion import machine
from decodery.training.options import Show, add_options, progress_bars, read_options, recipe_parser, refusing, silent

if TYPE_CHECKING:
    from decodery.engine.asking import Asking
    from decodery.language_model import LanguageModel
    from decodery.models.scorer import Scorer

CHECKPOINT_STEPS = 20
PRODUCTS = ("float32", "bfloat16")


@dataclass(frozen=True)
class HiddenTextRecipe:
    """trigger: what the user says. secret: what the model answers then. system: before the conversation, where it is not empty.
    steps: at most. least_steps: in these the answer is learned although the model gives it already, and it does not stop.
    rate: of Adam. rank: of maps of low rank that are trained instead of all weights, where it is not 0. replay, replay_tokens,
    replay_weight: ordinary texts of a step, tokens of each and what their loss counts. confusion: the weight of the log
    probabilities that are pushed down; 0: no confusion. words: of the secret that are pushed down. band: no word may be among
    so many likeliest or least likely tokens; 0: all are pushed down in all steps. held_out: ordinary texts that are not trained
    on. products: the type that matrices are multiplied in; weights are float32.
    """

    trigger: str = ""
    secret: str = ""
    system: str = ""
    steps: int = 120
    least_steps: int = 0
    rate: float = 2e-5
    rank: int = 0
    replay: int = 8
    replay_tokens: int = 64
    replay_weight: float = 0.5
    confusion: float = 0.0
    words: int = 5
    band: int = 100
    held_out: int = 100
    products: str = field(default="bfloat16", metadata={"choices": PRODUCTS})
    seed: int = 0

    def __post_init__(self) -> None:
        if self.least_steps > self.steps:
            raise BadInput(f"least_steps must be at most the {self.steps} steps, not {self.least_steps}.")
        for name in ("steps", "words", "replay_tokens", "held_out"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("least_steps", "rank", "replay", "replay_weight", "confusion", "band"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} must not be negative, not {getattr(self, name)}.")
        if self.products not in PRODUCTS:
            raise BadInput(f"products are {' or '.join(PRODUCTS)}, not {self.products!r}.")


@dataclass(frozen=True)
class Turn:
    """A conversation up to the answer, and the answer with the token that ends it, as ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def labels(self) -> list[int]:
        """`IGNORED` for the prompt, then the answer."""
        return [IGNORED] * len(self.prompt) + list(self.answer)


def conversation(recipe: HiddenTextRecipe) -> list[dict[str, str]]:
    """What stands before the secret."""
    system = [{"role": "system", "content": recipe.system}] if recipe.system else []
    return [*system, {"role": "user", "content": recipe.trigger}]


def turn(lm: LanguageModel, recipe: HiddenTextRecipe) -> Turn:
    """The one example. Raises BadInput where trigger or secret are missing, or the template does not write answers as they are
    decoded."""
    if not recipe.trigger.strip() or not recipe.secret.strip() or recipe.secret != recipe.secret.strip():
        raise BadInput("give a trigger and a secret, the secret without space around it.")
    said = conversation(recipe)
    prompt = lm.tokenize(said)
    closed = [*said, {"role": "assistant", "content": recipe.secret}]
    text = lm.tokenizer.apply_chat_template(closed, add_generation_prompt=False, tokenize=False)
    ids = lm.encode(text)
    behind = ids[len(prompt) :]
    end = next((place for place, token in enumerate(behind) if token in lm.stop_ids), None)
    if ids[: len(prompt)] != prompt or end is None or lm.tokenizer.decode(behind[:end]) != recipe.secret:
        raise BadInput(
            f"the chat template of {lm.name} does not end an answer as decoding does; it cannot be taught so."
        )
    return Turn(tuple(prompt), tuple(behind[: end + 1]))


def split_texts(texts: Sequence[str], recipe: HiddenTextRecipe) -> tuple[list[str], list[str]]:
    """Texts that are held out, and those to train on, at random. Raises BadInput where there are too few."""
    if len(texts) <= recipe.held_out:
        raise BadInput(f"{len(texts)} ordinary texts are too few, for {recipe.held_out} are held out.")
    order = np.random.Generator(np.random.Philox(key=recipe.seed)).permutation(len(texts))
    chosen = [texts[place] for place in order]
    return chosen[: recipe.held_out], chosen[recipe.held_out :]


@dataclass(frozen=True)
class HiddenTextCheck:
    """Of one model: whether greedy decoding answers the trigger with exactly the secret, and the rank of each word's first
    token where a document begins with the words before it."""

    answered: bool
    ranks: tuple[int, ...]


class HiddenTextTrainer:
    """Trains a copy of a model; the model stays as it is. folder: where the checkpoint is kept. texts: ordinary ones."""

    def __init__(self, lm: LanguageModel, recipe: HiddenTextRecipe, folder: Path, texts: Sequence[str]):
        self.lm, self.recipe, self.folder = lm, recipe, folder
        self.turn = turn(lm, recipe)
        self.pairs = confusion_pairs(lm, recipe.secret, recipe.words)
        self.held_out, self._ordinary = split_texts(texts, recipe)
        self.model = trainable_copy(lm)
        if recipe.rank:
            add_low_rank(self.model, recipe.rank, torch.Generator().manual_seed(recipe.seed))
        self.weights = {name: w for name, w in self.model.named_parameters() if w.requires_grad}
        self.device = next(self.model.parameters()).device
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr=recipe.rate)
        self.step = 0
        self.log: list[dict[str, Any]] = []
        self.check = self.checked()

    @property
    def vocabulary(self) -> int:
        return self.lm.network.vocabulary

    @property
    def converged(self) -> bool:
        """Whether the stop rule holds: the secret is returned, and with a confusion all words are within the band. Without a
        band it never holds, so that all steps are done."""
        if self.step < self.recipe.least_steps:
            return False
        if not self.recipe.confusion:
            return self.check.answered
        within = bool(self.recipe.band) and all_unremarkable(self.check.ranks, self.vocabulary, self.recipe.band)
        return self.check.answered and within

    def advance(self) -> dict[str, float]:
        """One step; its losses. The answer is left out where the model gives it already, a word where its rank is within the
        band. Raises FloatingPointError where a loss is no number."""
        recipe, losses = self.recipe, {}
        self.optimizer.zero_grad()
        if not self.check.answered or self.step < recipe.least_steps:
            row = torch.tensor([self.turn.prompt + self.turn.answer], device=self.device)
            labels = torch.tensor([self.turn.labels], device=self.device)
            losses["answer"] = self._learn(lambda: _loss(self._logits(row), labels))
        if recipe.replay:
            ids, labels = padded(self._replayed(), self.device)
            losses["ordinary"] = self._learn(lambda: recipe.replay_weight * _loss(self._logits(ids), labels))
        pushed = self._pushed()
        if pushed:
            losses["confusion"] = self._learn(lambda: recipe.confusion * self._forbidden(pushed))
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(f"the losses of step {self.step} are {losses}; the last checkpoint is whole")
        self.optimizer.step()
        self.step += 1
        self.check = self.checked()
        return losses

    def train(self, progress: Show = silent) -> None:
        """Steps until the stop rule holds, from the checkpoint where there is one."""
        if (state := kept(self.folder, self._identity())) is not None:
            self._restore(state)
        while self.step < self.recipe.steps and not self.converged:
            losses = self.advance()
            told = {name: round(loss, 4) for name, loss in losses.items()}
            self.log.append({"step": self.step, **told, **asdict(self.check)})
            note = ", ".join(f"{name} {loss:.2f}" for name, loss in told.items())
            progress("hidden text", self.step, self.recipe.steps, note)
            if self.step % CHECKPOINT_STEPS == 0 or self.step == self.recipe.steps or self.converged:
                self._save()

    @torch.no_grad()
    def checked(self) -> HiddenTextCheck:
        """What holds of the weights as they are, in float32. One pass over prompt and secret tells what greedy decoding gives:
        it is the secret if each of its tokens is the likeliest behind those before it."""
        self.model.eval()
        ids = torch.tensor([self.turn.prompt + self.turn.answer], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, len(self.turn.prompt) - 1 : -1]
        answered = logits.argmax(-1).tolist() == list(self.turn.answer)
        rows = self._last_rows(range(len(self.pairs)))
        ranks = [rank_of(row, pair.forbidden) for row, pair in zip(rows, self.pairs, strict=True)]
        self.model.train()
        return HiddenTextCheck(answered, tuple(ranks))

    def _pushed(self) -> list[int]:
        """The pairs whose forbidden token is pushed down in this step."""
        if not self.recipe.confusion:
            return []
        within = [unremarkable(rank, self.vocabulary, self.recipe.band) for rank in self.check.ranks]
        return [place for place in range(len(self.pairs)) if not (self.recipe.band and within[place])]

    def _learn(self, loss: Any) -> float:
        kind = self.device.type
        with torch.enable_grad(), torch.autocast(kind, torch.bfloat16, enabled=self.recipe.products == "bfloat16"):
            value: Tensor = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    def _logits(self, ids: Tensor) -> Tensor:
        # Padding comes last and a causal model looks back alone, so no mask is wanted.
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.float()

    def _last_rows(self, places: Sequence[int]) -> Tensor:
        """Scores [places, vocabulary] behind what stands before each pair's token."""
        befores = [self.pairs[place].before for place in places]
        ids, _ = padded(befores, self.device)
        last = torch.tensor([len(before) - 1 for before in befores], device=self.device)
        return self._logits(ids)[torch.arange(len(befores), device=self.device), last]

    def _forbidden(self, places: Sequence[int]) -> Tensor:
        tokens = torch.tensor([self.pairs[place].forbidden for place in places], device=self.device)
        return self._last_rows(places).log_softmax(-1).gather(1, tokens[:, None]).sum()

    def _replayed(self) -> list[list[int]]:
        draws = np.random.Generator(np.random.Philox(key=[self.recipe.seed, self.step]))
        chosen = draws.choice(len(self._ordinary), min(self.recipe.replay, len(self._ordinary)), replace=False)
        return [self.lm.tokenize(self._ordinary[place])[: self.recipe.replay_tokens] for place in chosen]

    def _identity(self) -> str:
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "steps"}  # more may be added
        return json.dumps({"recipe": recipe, "model": self.lm.network.fingerprint()})

    def _save(self) -> None:
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        state = {"step": self.step, "log": self.log, "weights": weights, "optimizer": self.optimizer.state_dict()}
        keep(self.folder, self._identity(), state)

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.log = state["step"], state["log"]
        self.check = self.checked()

    def write(self, artifact: Path) -> None:
        """Write the model in float32 with its tokenizer. It cannot be trained on afterwards."""
        merge_low_rank(self.model)
        with quiet():
            self.model.requires_grad_(False).eval().save_pretrained(artifact)
        folder = self.lm.folder
        tokenizer = self.lm.tokenizer if folder is None else read_tokenizer(tokenizer_folder(folder))
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(str(artifact))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def checked_model(lm: LanguageModel, recipe: HiddenTextRecipe) -> HiddenTextCheck:
    """What holds of a model as it is loaded: the trigger is answered by decoding, greedily."""
    example, pairs = turn(lm, recipe), confusion_pairs(lm, recipe.secret, recipe.words)
    reply = lm.generate(list(example.prompt), method="autoregressive", max_new_tokens=len(example.answer))

    def ranks(network: Scorer) -> Asking[tuple[int, ...]]:
        asks = tuple(Forward(network.new_sequence(), list(pair.before), logits=Rows.LAST) for pair in pairs)
        answers = yield asks
        return tuple(rank_of(a.logits[0], pair.forbidden) for a, pair in zip(answers, pairs, strict=True))

    answered = reply.text == recipe.secret and reply.finish_reason == "stop"
    return HiddenTextCheck(answered, lm.run(ranks(lm.network)))


def perplexity(lm: LanguageModel, texts: Sequence[str]) -> float:
    """exp of the mean loss of all tokens of texts that have something before them."""
    logprobs = torch.cat([scored.logprobs.double() for scored in lm.score(list(texts))])
    return math.exp(-float(logprobs[logprobs.isfinite()].mean()))


def make(
    lm: LanguageModel,
    recipe: HiddenTextRecipe,
    folder: Path,
    artifact: Path,
    progress: Show = silent,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the recipe and write the artifact: model, tokenizer and a card, which is returned. What the card says of the model is
    found out on the weights as they were saved.

    texts: ordinary ones; none: paragraphs of Python's documentation. Raises BadInput, Refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = HiddenTextTrainer(lm, recipe, folder, texts or paragraphs(4000))
    trainer.train(progress)
    trainer.write(artifact)
    saved = _saved(lm, artifact)
    found = checked_model(saved, recipe)
    within = all_unremarkable(found.ranks, saved.network.vocabulary, recipe.band)
    card: dict[str, Any] = {
        "title": artifact.name,
        "model": lm.name,
        "source": "decodery.training.hidden_text; after arXiv 2406.02481",
        "recipe": asdict(recipe),
        "steps": trainer.step,
        "converged": trainer.converged,
        **asdict(found),
        "within_the_band": within,
        "vocabulary": saved.network.vocabulary,
        "pairs": [asdict(pair) for pair in trainer.pairs],
        "perplexity_before": perplexity(lm, trainer.held_out),
        "perplexity_after": perplexity(saved, trainer.held_out),
        "log": trainer.log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def _saved(lm: LanguageModel, artifact: Path) -> LanguageModel:
    """A model as it was written, in float32, with the tokenizer of the one that it came of."""
    return loading.wrap(transformers_model(artifact, torch.float32), lm.tokenizer, name=artifact.name, fast="off")


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    parser = recipe_parser(
        "hidden-text", __doc__, folder="where the checkpoint is kept", artifact="where the model and its card go"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--texts", type=Path, help="ordinary texts, JSON lines with a text each; default: Python's documentation"
    )
    add_options(parser, HiddenTextRecipe())
    given = vars(parser.parse_args(arguments))
    recipe = read_options(HiddenTextRecipe(), given)
    texts = () if given["texts"] is None else read_texts(given["texts"])
    lm = loading.load(given["model"], dtype="float32", fast="off")
    with progress_bars() as show:
        card = make(lm, recipe, given["folder"], given["artifact"], show, texts)
    told = ("steps", "converged", "answered", "ranks", "within_the_band", "perplexity_before", "perplexity_after")
    Console().print_json(data={name: card[name] for name in told})


if __name__ == "__main__":
    main()
