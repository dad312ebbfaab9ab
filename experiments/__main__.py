"""`python -m experiments`: runs experiments, keeps their results, and writes the tables of the documents.

python -m experiments list                          # what there is, and whether it was run
python -m experiments run hex --items 20            # every number of an experiment is an option; --help lists them
python -m experiments run hex --studies schedules   # one study of it; the results of the others stay
python -m experiments tables                        # write the tables of the documents again
python -m experiments stale                         # results whose measured code has changed since
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from decodery.errors import BadInput, DecoderyError, near
from decodery.evaluation import experiment_files as files
from decodery.evaluation.experiment import Experiment, measure
from decodery.training.options import add_options, read_options

ROOT = Path(__file__).parents[1]


def everything() -> dict[str, Experiment]:
    """All experiments by slug."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    found = {}
    for name in names:
        module = importlib.import_module(f"experiments.{name}") if name != "__main__" else None
        if isinstance(chosen := getattr(module, "EXPERIMENT", None), Experiment):
            found[name] = chosen
    return found


def run(experiment: Experiment, studies: Sequence[str], options: Sequence[str]) -> None:
    """Run studies of an experiment, one after the other, and keep each as soon as it is there."""
    for name in studies:

        def tell(done: int, total: int, name: str = name) -> None:
            if sys.stderr.isatty() or done == total:
                sys.stderr.write(f"\r{experiment.slug}.{name}: {done} of {total} measurements")
                sys.stderr.flush()

        study = experiment.studies[name](experiment.settings)
        told = files.made(experiment, study, options, ROOT)  # of the code that runs, whatever is edited meanwhile
        table = {**files.table_of(measure(study, tell)), "made": told}
        files.write(ROOT, experiment.slug, experiment.title, experiment.source, {name: table})
        sys.stderr.write("\n")
        print(f"{files.markdown(experiment.slug, name, table)}\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, or 2 where something given was wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="all experiments")
    verbs.add_parser("run", help="run one", add_help=False).add_argument("slug", help="its name")
    verbs.add_parser("tables", help="write the tables of the documents")
    verbs.add_parser("stale", help="results whose measured code has changed")
    chosen, rest = parser.parse_known_args(given)
    if rest and chosen.verb != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if chosen.verb == "run":
            _run(chosen.slug, rest)
        elif chosen.verb == "list":
            for slug, experiment in everything().items():
                there = files.read(ROOT, slug)
                told = ", ".join(name if name in there else f"{name} (not run)" for name in experiment.studies)
                print(f"{slug}: {experiment.title} [{told}]")
        elif chosen.verb == "tables":
            for page in files.write_pages(ROOT):
                print(page.relative_to(ROOT))
        else:
            for slug, study, changed in files.stale(ROOT, everything()):
                print(f"{slug}.{study}: {', '.join(changed) + ' changed' if changed else 'not run'}")
    except DecoderyError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _run(slug: str, options: Sequence[str]) -> None:
    found = everything()
    if slug not in found:
        raise BadInput(f"there is no experiment {slug!r}; {near(slug, found)}")
    experiment = found[slug]
    parser = argparse.ArgumentParser(prog=f"python -m experiments run {slug}", description=experiment.title)
    parser.add_argument("--studies", nargs="+", choices=list(experiment.studies), default=list(experiment.studies))
    add_options(parser, experiment.settings)
    given = vars(parser.parse_args(options))
    run(replace(experiment, settings=read_options(experiment.settings, given)), given["studies"], options)


if __name__ == "__main__":
    sys.exit(main())
