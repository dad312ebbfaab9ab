"""SchED's three shapes against a constant threshold, Prophet and threshold decoding: accuracy, forwards, QPS.

    python benchmarks/sched.py --samples 100 --by-task

Thresholds are the published ones (raw) and those of a calibration on prompts that are not measured (calibrated). QPS is the
speed-up in forwards over the sampler without an exit, times the share of its accuracy that is left to the fourth power.
"""

from __future__ import annotations

from canvas_study import Row, Study, arguments

from decodery.diffusion.sched.margins import quality_penalised_speed
from decodery.evaluation.parallelbench.tasks import make_samples
from decodery.training.exit_thresholds import MEANS, POSITIONS, PROMPTS, calibrate

SHAPES = ("linear", "cosine", "exponential")
SEED = 12345
"""Of the prompts that calibrate."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sampler", default="masked-diffusion", help="a method without canvas parameters")
    parser.add_argument("--block", type=int, default=32, help="positions of a block (default: 32, no blocks)")
    parser.add_argument(
        "--of", choices=(MEANS, POSITIONS), default=MEANS, help="what the calibration's percentiles are of"
    )
    parser.add_argument("--cache", default="none", choices=("none", "prefix"))
    options = parser.parse_args()
    study = Study(options)
    lm, shared = study.lm, f"block_length={options.block}, cache={options.cache}"
    per_task = -(-PROMPTS // len(study.tasks))
    prompts = [s.prompt for task in study.tasks for s in make_samples(task, per_task, seed=SEED)][:PROMPTS]
    found = calibrate(lm, [lm.tokenize(prompt) for prompt in prompts], gen_length=study.canvas, of=options.of)
    print(f"calibrated on {len(prompts)} prompts: high {found.high:.2f}, low {found.low:.2f}")
    study.more["calibration"] = {"high": found.high, "low": found.low, "of": options.of}
    opening = f"sampler='{options.sampler}', {shared}"
    study.heading()
    baseline = study.run(f"sched({opening}, threshold_high=inf, threshold_low=inf)", "no exit")

    def show(spec: str, label: str) -> Row:
        row = study.run(spec, label)
        speed = baseline.forwards / row.forwards
        qps = quality_penalised_speed(speed, row.accuracy, baseline.accuracy)
        study.line(row, f"   {speed:5.2f}x  QPS {qps:5.2f}")
        study.more.setdefault("qps", {})[label] = qps
        return row

    study.line(baseline, f"    1.00x  QPS {quality_penalised_speed(1.0, baseline.accuracy, baseline.accuracy):5.2f}")
    pairs = {
        "raw 7.5/2.5": (7.5, 2.5),
        "raw 7.5/0": (7.5, 0.0),
        "calibrated": (found.high, found.low),
        "calibrated/0": (found.high, 0.0),
    }
    for name, (high, low) in pairs.items():
        levels = f"threshold_high={high}, threshold_low={low}"
        for shape in SHAPES:
            show(f"sched({opening}, shape={shape}, {levels})", f"{shape}, {name}")
        show(f"sched({opening}, {levels}, stability_gate=False)", f"linear, {name}, no gate")
        show(f"sched({opening}, {levels}, ends=left_out)", f"linear, {name}, ends left out")
    for slope in (2.0, 16.0):
        levels = f"threshold_high={found.high}, threshold_low={found.low}"
        show(
            f"sched({opening}, shape=exponential, slope={slope}, {levels})", f"exponential slope {slope:g}, calibrated"
        )
    for name, level in {"7.5": 7.5, "5": 5.0, "2.5": 2.5, "high": found.high, "low": found.low}.items():
        show(f"sched({opening}, threshold_high={level}, threshold_low={level})", f"constant {name} ({level:.2f})")
    show(f"sched({opening}, shape=prophet)", "prophet, raw")
    levels = f"threshold_high={found.high}, threshold_low={found.low}"
    show(f"sched({opening}, shape=prophet, {levels})", "prophet, calibrated")
    for threshold in (0.7, 0.8, 0.9, 0.95):
        show(f"masked-diffusion(rule=threshold, threshold={threshold}, {shared})", f"threshold {threshold}")
    study.by_task(study.rows)
    study.write()


if __name__ == "__main__":
    main()
