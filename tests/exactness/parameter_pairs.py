"""For every parameter of every method two specs that differ in it alone, and a situation in which the difference shows.

Listed by the class that declares the parameter, so that a base says it once for all methods; a method may say it again for
itself. A spec is written without the method's name. The situations are functions of this module's second half.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """one, other: values of the parameter. beside: further parameters, the same in both. situation: where it shows. refused:
    what the second value does there is to refuse."""

    one: object
    other: object
    beside: str = ""
    situation: str = ""
    refused: bool = False


def text(one: object, other: object, beside: str = "") -> Pair:
    """Seen in greedy decoding of several texts, each twice in one session."""
    return Pair(one, other, beside, "text")


def sampled(one: object, other: object, beside: str = "") -> Pair:
    """Seen at a temperature of 1."""
    return Pair(one, other, beside, "sampled")


def constrained(one: object, other: object, beside: str = "") -> Pair:
    """Seen at a temperature of 1, where the output must match a pattern."""
    return Pair(one, other, beside, "constrained")


def deep(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a network with six layers, greedily, over a longer text."""
    return Pair(one, other, beside, "deep")


def long(one: object, other: object, beside: str = "") -> Pair:
    """Seen on such a network over a text of more than 32 tokens."""
    return Pair(one, other, beside, "long")


def network(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a small network."""
    return Pair(one, other, beside, "network")


def warm(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a small network at a temperature of 1."""
    return Pair(one, other, beside, "warm network")


def sets(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a small network that reads a prompt with a set, whose longest part comes first."""
    return Pair(one, other, beside, "sets")


def canvas(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a canvas of twelve positions, greedily."""
    return Pair(one, other, beside, "canvas")


def hot_canvas(one: object, other: object, beside: str = "") -> Pair:
    """Seen on such a canvas at a temperature of 1."""
    return Pair(one, other, beside, "hot canvas")


def window(one: object, other: object, beside: str = "") -> Pair:
    """Seen on twelve positions of an any-order model at a temperature of 1."""
    return Pair(one, other, beside, "any order")


def growing(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a text that grows by insertions, sampled."""
    return Pair(one, other, beside, "growing text")


def ending(one: object, other: object, beside: str = "") -> Pair:
    """Seen on a canvas whose likeliest tokens are end tokens here and there."""
    return Pair(one, other, beside, "ending canvas")


def shifted(one: object, other: object, beside: str = "") -> Pair:
    """Seen on the canvas of a shifted model."""
    return Pair(one, other, beside, "shifted canvas")


def clauses(one: object, other: object, beside: str = "") -> Pair:
    """Seen in sampled text with punctuation, under a nucleus."""
    return Pair(one, other, beside, "clauses")


def ended(one: object, other: object, beside: str = "") -> Pair:
    """Seen in greedy requests in which some tokens end a text."""
    return Pair(one, other, beside, "ends")


def drawn(one: object, other: object, beside: str = "") -> Pair:
    """Seen at a temperature of 1 where some tokens end a text."""
    return Pair(one, other, beside, "drawn ends")


def in_bytes(one: object, other: object, beside: str = "") -> Pair:
    """Seen at a temperature of 1 on a model whose tokens cover each other, and which does not know its tokenizer."""
    return Pair(one, other, beside, "bytes")


DRAFT = "draft=other"
SEARCH = "bypass=False, context_window=4"
DELIMITERS = "delimiters=0+6+7+8, block_length=4"
PAIRS: dict[str, dict[str, Pair]] = {
    "ContrastiveSearch": {"alpha": network(0.1, 0.9), "k": text(2, 6)},
    "CautiousNextToken": {
        "trials": clauses(2, 6),
        "low": clauses(0.01, 1.4),
        "high": clauses(0.5, 9.0),
        "rule": clauses("paper", "code"),
        "score": clauses("processed", "raw"),
        "choice": clauses("perplexity", "first"),
        "commit": clauses("clause", "token"),
        "marks": clauses("text", "reference"),
        "longest": clauses(2, 20),
    },
    "CounterfactualGeneration": {
        "interventions": sampled("", "2:auto"),
        "factual": sampled("", "1+2+3", "interventions=2:5"),
        "noise": sampled("same", "fresh", "interventions=2:5"),
        "fresh_seed": sampled(0, 1, "noise=fresh"),
        "nucleus": sampled(0.1, 1.0, "interventions=2:auto"),
        "intervention_seed": sampled(0, 5, "interventions=2:auto"),
        "forced": sampled("together", "singly", "factual=1+2+3, interventions=2:5"),
    },
    "SoftThinking": {
        "noise": warm("vanilla", "gumbel"),
        "components": warm(2, 8),
        "tau": warm(0.1, 2.0),
        "concentration": warm(0.5, 50.0, "noise=dirichlet"),
        "steps": warm(2, 8),
        "end": warm("", "dd", "steps=3"),
        "cold_steps": warm(0, 1, "end=dd"),
        "cold_entropy": warm(0.0, 2.9, "cold_steps=1"),
        "cold_unit": warm("nats", "share", "cold_steps=9"),
    },
    "AdaptiveDecoding": {
        "threshold": text(0.1, 3.0),
        "candidates": text(2, 5, "threshold=0.2"),
        "lookahead": text(1, 6, "threshold=0.2"),
        "until": text("end", "function"),
        "mode": text("engine", "reference", "threshold=0.2, until=function"),
        "reuse": text(True, False, "threshold=0.2"),
        "learned": Pair("code", "prose", situation="thresholds"),
        "beams": text(1, 3, "threshold=1"),
        "scale": text(1.0, 5.0, "beams=3, threshold=0.8"),
    },
    "SetBasedPrompting": {
        "method": sets("autoregressive", "prompt-lookup"),
        "order": sets("canonical", "given"),
        "edit": sets("both", "attention"),
    },
    "SuperposedDecoding": {
        "drafts": network(1, 3),
        "tau": network(0.06, 2.0),
        "tokens": network(3, 12, "tau=1.0"),
        "ngrams": network("none", "prompt"),
        "corpus": network("{corpus}", "{calibration}", "ngrams=corpus, tau=1.0, tokens=260"),
        "alpha": network(0.2, 0.9, "ngrams=prompt"),
        "weights": network("0.5x0.1", "0.1x0.5", "ngrams=prompt, tau=1.0, tokens=260, first=code"),
        "penalty": network(1.0, 200.0, "ngrams=prompt"),
        "first": network("paper", "code", "ngrams=prompt"),
    },
    "PromptLookup": {
        "max_ngram": text(1, 3),
        "length": text(2, 10, "adapt=False"),
        "pick": text("first", "last"),
        "require_full": text(False, True),
        "adapt": text(True, False),
    },
    "SuffixAutomatonLookup": {
        "length": text(2, 40, "adapt=False"),
        "alpha": text(0.0, 4.0, "adapt=False"),
        "corpus": text("", "{corpus}"),
        "corpus_handicap": text(0, 9, "corpus='{corpus}'"),
        "auxiliary": text("none", "token-recycling"),
        "threshold": text(1, 5, "auxiliary=token-recycling"),
        "adapt": text(True, False),
    },
    "TokenRecycling": {
        "k": text(2, 8),
        "nodes": text(3, 30),
        "persist": text(True, False),
        "seed_from_prompt": text(False, True),
        "skip_unknown": text(True, False),
        "update": text("all", "accepted"),
    },
    "Cascade": {
        "sources": text("copied", "copied+recycled"),
        "table": text("auto", "{table}"),
        "nodes": text(2, 20),
        "depth": text(1, 16, "nodes=20"),
        "persist": text(True, False, "nodes=20"),
    },
    "ApproximateMatchLookup": {
        "window": text(2, 8, "mismatches=1"),
        "mismatches": text(0, 4, "policy=none"),
        "anchor": text(0, 3, "policy=none"),
        "rank": text("decayed", "run", "policy=none"),
        "decay": text(0.0, 0.9, "policy=none"),
        "length": text(2, 8, "policy=none"),
        "places": text(1, 4, "policy=none"),
        "nodes": text(2, 8, "policy=none"),
        "wrap": text(False, True, "policy=none, length=16, nodes=16"),
        "policy": text("cost", "none"),
        "substitute": text(False, True, "policy=none"),
        "persist": text(False, True, "policy=none"),
        "corpus": text("", "{corpus}", "policy=none"),
        "corpus_window": text(2, 12, "policy=none, corpus='{corpus}', corpus_mismatches=1"),
        "corpus_mismatches": text(0, 3, "policy=none, corpus='{corpus}', corpus_window=4"),
    },
    "PrivateFrequencyEstimation": {
        "table": text("", "{frequencies}", "max_ngram=0, adapt=False"),
        "alpha": text(0.5, 1e-6, "table='{frequencies}', max_ngram=0, adapt=False, width=16, nodes=24, depth=1"),
        "depth": text(1, 4, "table='{frequencies}', max_ngram=0, adapt=False"),
        "width": text(1, 3, "table='{frequencies}', max_ngram=0, adapt=False"),
        "nodes": text(2, 8, "table='{frequencies}', max_ngram=0, adapt=False"),
        "max_ngram": text(0, 3, "table='{frequencies}', adapt=False"),
        "adapt": text(True, False, "table='{frequencies}', max_ngram=0"),
    },
    "DiffAdapt": {
        "strategy": network("normal", "easy"),
        "probe": network("auto", "{probe}", "strategy=normal"),
        "fallback": network(0.0, 1.0, "probe='{probe}'"),
        "method": network("autoregressive", "prompt-lookup", "strategy=normal"),
    },
    "AdaptiveDraftVerification": {
        "corpus": text("", "{corpus}"),
        "top_m": text(1, 12),
        "window": text(3, 16),
        "delta": text(0.04, 0.4),
        "cap": text(0.05, 3.0),
        "simulations": text(2, 150),
        "path_keys": text(2, 4, "adapt=False"),
        "c1": text(0.0, 32.0, "corpus='{corpus}', simulations=40, prefixes=6"),
        "c2": text(0.1, 100.0, "corpus='{corpus}', simulations=40, prefixes=6, c1=0"),
        "prefixes": text(1, 24, "adapt=False"),
        "choices": text(2, 24, "adapt=False"),
        "budget": text("paths", "trie", "adapt=False, choices=6, corpus='{corpus}'"),
        "explore": text(True, False, "corpus='{corpus}', simulations=40, prefixes=6"),
        "legacy_score": text(False, True, "corpus='{corpus}', simulations=40, prefixes=6"),
        "read_prompt": text(False, True, "window=3"),
        "persist": text(True, False),
        "adapt": text(True, False),
    },
    "DraftLawMethod": {
        "draft": sampled("ngram", "layers"),
        "layers": deep(1, 3, "draft=layers"),
        "vocabulary": Pair("auto", "same", DRAFT, "other tokenizer", refused=True),
    },
    "MultiDraftMethod": {"verifier": sampled("recursive-rejection", "k-seq", "draft=ngram-text")},
    "DraftModel": {
        "draft": sampled("layers", "other"),
        "length": sampled(2, 4),
        "width": sampled(1, 3),
        "vocabulary": Pair("shared", "text", DRAFT, "other tokenizer"),
    },
    "SpecDecPlusPlus": {
        "rule": Pair("confidence", "head", DRAFT, "sampled", refused=True),
        "head": text("{acceptance}", "{another acceptance}", "draft=other, rule=head"),
        "threshold": text(0.2, 0.9, "draft=other, head='{acceptance}'"),
        "confidence": sampled(0.1, 0.9, DRAFT),
        "shortest": sampled(1, 5, "draft=other, confidence=1"),
        "longest": sampled(2, 5, "draft=other, confidence=0"),
    },
    "RecursiveSpeculativeDecoding": {
        "tree": sampled("beam", "branching"),
        "width": sampled(2, 4),
        "length": sampled(1, 4),
        "branching": sampled("2x2", "3x1x1", "tree=branching"),
    },
    "Spectr": {
        "drafts": sampled(1, 3),
        "length": sampled(1, 3),
        "rho": sampled("best", "drafts"),
    },
    "OptimalMultiDraft": {
        "verifier": sampled("recursive-rejection", "k-seq", "mode=with-replacement"),
        "widths": sampled("2x2", "3x1x1"),
        "mode": sampled("greedy", "with-replacement"),
        "least": sampled(0.0, 0.9),
    },
    "Swift": {
        "skip_ratio": deep(0.25, 0.75, SEARCH),
        "layer_set": deep("", "{layer_set}", "bypass=False"),
        "optimise": long(True, False, "bypass=False"),
        "whole_layers": deep(False, True, f"{SEARCH}, skip_ratio=0.5"),
        "context_window": deep(2, 8, "bypass=False"),
        "opt_interval": deep(1, 3, SEARCH),
        "bayes_interval": deep(0, 3, f"{SEARCH}, max_score=1.0"),
        "max_opt_iterations": deep(1, 20, f"{SEARCH}, max_score=1.0"),
        "max_tolerance": deep(1, 20, f"{SEARCH}, max_score=1.0"),
        "max_score": deep(0.0, 1.0, SEARCH),
        "stop_threshold": deep(0.0, 0.9, "bypass=False"),
        "max_steps": deep(1, 6, "bypass=False, stop_threshold=0"),
        "top_k": deep(1, 4, "bypass=False, stop_threshold=0"),
        "bypass": deep(True, False),
        "search_seed": deep(0, 1, SEARCH),
    },
    "DynamicExit": {
        "exit": deep(1, 3),
        "length": deep(1, 4),
        "policy": deep("threshold", "fixed", "bypass=False"),
        "max_draft": deep(2, 9, "bypass=False"),
        "exits": deep("1+2", "4+5", "bypass=False"),
        "adapters": network("off", "{adapters}", "exits=2, bypass=False"),
        "omega": deep(0.1, 1.0, "bypass=False"),
        "context": deep(0, 32, "bypass=False"),
        "cost": text("layers", "measured", "policy=fixed, exits=1"),
        "bypass": Pair(True, False, "exits=5", "hard"),
        "clip": deep(True, False, "bypass=False"),
    },
    "Kangaroo": {
        "length": network(1, 3, "threshold=0, rest=False"),
        "threshold": network(0.0, 1.1, "rest=False"),
        "adapter": network("auto", "{kangaroo}", "threshold=0, rest=False"),
        "vocabulary": network("frequent", "all", "threshold=0, rest=False"),
        "rest": Pair(True, False, "threshold=0", "timed network"),
    },
    "DiffusionMethod": {
        "gen_length": canvas(6, 12),
        "block_length": canvas(3, 12),
        "cache": canvas("none", "dual", "block_length=4"),
        "freeze": canvas("after_clean_forward", "at_boundary", "block_length=4, cache=freecache"),
        "shrink": ending(False, True, "block_length=12, cache=freecache"),
        "cfg_scale": canvas(0.0, 1.5),
        "early_stop": ending("block", "never", "block_length=4"),
        "shift_row": shifted("carry", "compute", "block_length=4, cache=prefix"),
    },
    "StepwiseMethod": {"steps": canvas(6, 12, "block_length=4")},
    "InsertionLanguageModels": {
        "stop_threshold": growing(0.05, 1.0),
        "gap_top_k": growing(1, 3),
        "gaps": growing("free", "rightmost"),
        "max_steps": growing(2, 6),
        "max_length": growing(23, 40, "stop_threshold=1.0"),
        "force_first": growing(False, True, "stop_threshold=0.05"),
    },
    "MaskedDiffusionDecoding": {
        "rule": canvas("low_confidence", "threshold"),
        "steps": canvas(6, 12, "block_length=4"),
        "value_independent": hot_canvas(False, True),
        "rank": hot_canvas("entropy", "margin", "value_independent=True"),
        "threshold": canvas(0.9, 0.999, "rule=threshold"),
        "factor": canvas(0.2, 3.0, "rule=factor"),
        "tokens_per_step": canvas(1, 3),
        "alg_temp": canvas(0.0, 2.0, "rule=entropy"),
        "end_tokens": ending("free", "banned"),
    },
    "ApproximateJointSampling": {
        "gen_length": canvas(6, 12, "layer=off"),
        "block_length": canvas(3, 12, "layer=off"),
        "cache": canvas("none", "dual", "block_length=4, layer=off"),
        "freeze": canvas("after_clean_forward", "at_boundary", "block_length=4, cache=freecache, layer=off"),
        "shrink": ending(False, True, "block_length=12, cache=freecache, layer=off"),
        "cfg_scale": canvas(0.0, 1.5, "layer=off"),
        "early_stop": ending("block", "never", "block_length=4, layer=off"),
        "shift_row": shifted("carry", "compute", "block_length=4, cache=prefix, layer=off"),
        "steps": canvas(6, 12, "block_length=4, layer=off"),
        "tokens_per_step": canvas(1, 3, "layer=off"),
        "layer": canvas("off", "{layer}", "tokens_per_step=3"),
    },
    "DParallel": {"threshold": canvas(0.05, 2.0)},
    "FreeDave": {
        "draft_steps": canvas(1, 4),
        "layout": canvas("batch", "tree"),
        "eager": canvas(False, True, "block_length=4"),
    },
    "FreeDavePlusPlus": {
        "rule": canvas("threshold", "factor"),
        "threshold": canvas(0.9, 0.999),
        "draft_steps": canvas(1, 4, "threshold=0.999"),
        "value_independent": hot_canvas(False, True, "threshold=0.4"),
        "eager": canvas(False, True, "block_length=4, threshold=0.999"),
        "early_stop": ending("block", "never", "block_length=4, threshold=0.4"),
    },
    "FreeCacheDecoding": {
        "freeze": canvas("after_clean_forward", "at_boundary", "block_length=4"),
        "shrink": ending(False, True, "block_length=12"),
        "shift_row": shifted("carry", "compute", "block_length=4"),
    },
    "GuidedDiffusion": {
        "cache": canvas("none", "freecache"),
        "freeze": canvas("after_clean_forward", "at_boundary", "block_length=4"),
        "early_stop": ending("prefix", "never"),
        "shift_row": shifted("carry", "compute", "block_length=4, cache=dual"),
        "guide": canvas("stories-twin", "another"),
        "gate": canvas("deterministic", "topk"),
        "top_k": canvas(1, 20, "gate=topk"),
        "ratio": canvas(0.0, 1.0, "gate=relative"),
        "threshold": canvas(0.0, 0.9, "gate=threshold"),
        "chunk": canvas(1, 32, "gate=topk, top_k=20"),
    },
    "AnyOrderMethod": {"gen_length": window(6, 12), "cache": window("ranks", "none")},
    "AnySubsetSpeculative": {
        "k": window(2, 5),
        "draft": window("self", "ngram"),
        "r_atol": window(0.0, 0.9),
    },
    "HiddenExperts": {
        "block_length": canvas(3, 12),
        "steps": canvas(6, 12, "block_lengths=2"),
        "block_lengths": canvas("2", "2x4"),
        "seeds": canvas(1, 3),
        "temperature": canvas(0.0, 0.9),
        "order": canvas("low_confidence", "random"),
        "answer": canvas("text", "index"),
        "choice": canvas("vote", "likelihood"),
        "stop_when_decided": canvas(False, True, "block_lengths=2x4x6, temperature=0, at_once=1"),
        "at_once": canvas(1, 5),
    },
    "WrappingMethod": {},
    "AdaBlock": {
        "sampler": canvas(None, "masked-diffusion"),
        "steps": canvas(6, 12, "sampler=masked-diffusion"),
        "threshold": canvas(0.9, 0.999),
        "delimiter_threshold": canvas(0.0, 0.9999, DELIMITERS),
        "delimiters": canvas("0+6", "7+8", "delimiter_threshold=0, block_length=4"),
        "delimiter_match": Pair("contains", "ends", "delimiters=comma, delimiter_threshold=0, block_length=4", "words"),
        "window": canvas(0.1, 1.0, "delimiter_threshold=0, delimiters=0+6+7+8, block_length=4"),
        "window_base": canvas(
            "length", "generated", "delimiter_threshold=0, delimiters=0+6+7+8, block_length=4, window=1.0"
        ),
        "boundary": hot_canvas(
            "drawn", "likeliest", "delimiter_threshold=0, delimiters=0+6+7+8, block_length=4, window=0.25"
        ),
    },
    "LocalLeap": {
        "threshold": canvas(0.9, 0.999, "relaxed_threshold=0.85"),
        "relaxed_threshold": canvas(0.1, 0.99, "threshold=0.99"),
        "radius": canvas(0, 6, "threshold=0.99, relaxed_threshold=0.1"),
        "value_independent": hot_canvas(False, True, "threshold=0.4, relaxed_threshold=0.1"),
    },
    "SchED": {
        "cache": canvas("none", "prefix", "block_length=4"),
        "sampler": canvas(None, "localleap"),
        "shape": canvas("linear", "cosine", "threshold_high=8, threshold_low=0.5, stability_gate=False"),
        "threshold_high": canvas(3.0, 20.0, "stability_gate=False"),
        "threshold_low": canvas(0.0, 6.0, "threshold_high=6.0, stability_gate=False"),
        "slope": canvas(0.5, 9.0, "shape=exponential, threshold_high=9, threshold_low=0, stability_gate=False"),
        "calibration": canvas(None, "{calibration}", "stability_gate=False"),
        "stability_gate": canvas(True, False, "threshold_high=4, threshold_low=0.5"),
        "patience": canvas(0, 3, "threshold_high=4, threshold_low=0.5"),
        "max_change": canvas(0.0, 1.0, "threshold_high=4.5, threshold_low=4.5"),
        "region": canvas("canvas", "block", "threshold_high=4, threshold_low=0.5, block_length=4"),
        "ends": ending("counted", "left_out", "threshold_high=2.8, threshold_low=2.8, stability_gate=False"),
        "average": canvas("request", "joint", "threshold_high=6, threshold_low=6, stability_gate=False"),
    },
    "BeamSearch": {
        "beams": ended(2, 5),
        "length_penalty": ended(-1.0, 2.0),
        "early_stopping": ended(True, "never"),
    },
    "TryingMethod": {
        "method": drawn("autoregressive", "token-recycling"),
        "samples": drawn(2, 6),
        "at_once": drawn(1, 4),
    },
    "BestOfN": {"by": drawn("mean", "total")},
    "Ariel": {
        "dimensions": drawn(1, 2),
        "precision": drawn("exact", "float", "text=abcdefghijkl, dimensions=16"),
        "point": drawn("0.25 0.75", "1/3 2/3", "dimensions=2"),
        "text": drawn("abcdef", "fedcba"),
        "towards": drawn("fedcba", "cafe", "text=abcdef"),
        "share": drawn(0.25, 0.75, "text=abcdef, towards=fedcba"),
        "radius": drawn(0.0, 0.5, "text=abcdef"),
        "reading": drawn("steps", "pass", "text=abcdef"),
    },
    "GrammarAlignedDecoding": {
        "warmup": constrained(0, 8),
        "keep": constrained("memory", "disk"),
        "at_once": constrained(1, 3, "warmup=9"),
        "nodes": constrained(1, 100, "warmup=8"),
        "reuse": constrained(True, False, "warmup=8"),
    },
    "AdaptiveWeightedRejection": {
        "particles": constrained(2, 4),
        "ess_threshold": constrained(0.0, 1.0),
        "resampling": constrained("stratified", "multinomial", "ess_threshold=1"),
        "proper_weights": constrained(True, False),
        "estimator": constrained("recursive", "traces"),
        "max_accepts": constrained(2, 5),
        "max_rejects": constrained(1, "auto"),
        "traces": constrained(1, 3, "estimator=traces"),
    },
    "LowDiscrepancyEstimate": {
        "samples": drawn(16, 64, "tolerance=0"),
        "of": drawn("log-probability", "tokens", "samples=16"),
        "text": drawn("a", "bc", "of=contains, samples=16"),
        "points": drawn("lattice", "net", "samples=16"),
        "replications": drawn(2, 4, "samples=16, least=1"),
        "least": drawn(1, 2, "samples=16"),
        "tolerance": drawn(0.0, 1000.0, "samples=32"),
        "confidence": drawn(0.9, 0.95, "samples=16"),
        "kernel": drawn(False, True, "samples=16"),
    },
    "ByteLevelProbabilities": {
        "until": in_bytes("end", "boundary"),
        "fast": in_bytes(False, True),
        "models": in_bytes("", "other"),
        "weights": in_bytes("", "9+1", "models=other"),
        "mean": in_bytes("probabilities", "logarithms", "models=other"),
    },
    "ByteDraftModel": {"draft": in_bytes("other", "another"), "length": in_bytes(1, 4, "draft=other")},
    "SelfConsistency": {
        "answer": drawn("text", "letter"),
        "votes": drawn("equal", "likelihood", "answer=text"),
        "stop_when_decided": Pair(False, True, "answer=text, at_once=1, samples=9", "one token"),
    },
    "DiverseBeamSearch": {
        "beams": ended(2, 6),
        "groups": ended(2, 3, "beams=6"),
        "strength": ended(0.0, 2.0),
        "diversity": ended("hamming", "cumulative", "beams=6"),
        "ngram": ended(2, 3, "beams=6, strength=2, diversity=ngram"),
        "fading": ended(1.0, 50.0, "beams=6, strength=2, diversity=cumulative"),
        "length_penalty": ended(0.0, 1.0, "beams=6"),
        "order": ended("penalised", "likelihood", "beams=6, groups=6"),
    },
}
