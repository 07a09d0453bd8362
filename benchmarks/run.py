"""./dev bench rows | head | losses | overhead | all: times the ops that are right."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases.contenders.peers import libraries
from benchmarks.cases.peaks import peak_of
from benchmarks.cases.registry import BY_NAME, OPS, implementations
from benchmarks.cases.targets import check_targets
from benchmarks.harness.case import DTYPES, Case
from benchmarks.harness.comparison import Comparison, compare
from benchmarks.harness.machine_info import machine
from benchmarks.harness.peak_memory import with_peaks
from benchmarks.harness.plots import plot
from benchmarks.harness.report import table
from benchmarks.harness.timing import BurstTimer, Timer

# Llama 2, Llama 3, Qwen 2.5 and 3, Gemma.
SIZES = (32_000, 128_256, 151_936, 262_144)
# Defaults by group; the rows of `losses` are tokens.
CASES = {
    "rows": [Case(dtype="float32"), Case(dtype="bfloat16")],
    "head": [Case(rows=1024, dtype="bfloat16")],
    "losses": [Case(rows=65_536), Case(rows=1_048_576)],
    "overhead": [Case(rows=8, vocab=256, width=32)],
}
QUICK = {
    "rows": Case(rows=32),
    "head": Case(rows=32, vocab=32_000, width=64),
    "losses": Case(rows=4096),
    "overhead": Case(rows=8, vocab=256, width=32),
}
# Rounds; where a turn is a burst of calls of microseconds, many of them.
REPEATS = {"overhead": 60}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    add = parser.add_argument
    add("group", nargs="?", default="all", choices=[*CASES, "all"])
    add("--op", choices=list(BY_NAME), help="this op alone")
    add("--peers", action="store_true", help="the other libraries too, in .venv-peers")
    add("--install-peers", action="store_true", help="make .venv-peers (done by ./dev) and stop")
    add("--sizes", type=comma, help=f"vocabularies, or all = {','.join(map(str, SIZES))}")
    add("--dtypes", type=comma, help=",".join(DTYPES))
    add("--logits", type=comma, default=["gaussian"], help="gaussian, or mean entropies: 0.3,0.8,3")
    add("--rows", type=int, help="rows (tokens) of the inputs")
    add("--width", type=int, help="hidden size")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--repeats", type=int, help="rounds: 7, of overhead 60")
    add(
        "--peaks",
        choices=["first", "all", "none"],
        default="first",
        help="peak memory, which takes"
        " a process each: of the first case of each op (default), of all, or of none",
    )
    add("--device", default="cpu", help="cpu or cuda")
    add("--quick", action="store_true", help="small sizes, a check that everything runs")
    add("--json", type=Path, metavar="FILE", help="default runs/bench/GROUP.json")
    add("--plot", type=Path, metavar="FILE", help="default runs/bench/GROUP.png")
    options = parser.parse_args(arguments)
    for dtype in options.dtypes or ():
        if dtype not in DTYPES:
            parser.error(f"--dtypes must be among {', '.join(DTYPES)}, got {dtype}")
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    return options


def comma(text: str) -> list[str]:
    return text.split(",")


def cases(options: argparse.Namespace, group: str) -> Iterator[Case]:
    """The group's defaults with what the command line replaces."""
    defaults = [QUICK[group]] if options.quick else CASES[group]
    given = {k: getattr(options, k) for k in ("rows", "width") if getattr(options, k)}
    base = replace(defaults[0], device=options.device, **given)
    if group == "losses":
        given_size = options.quick or options.rows
        yield from [base] if given_size else (replace(d, device=options.device) for d in defaults)
        return
    sizes = options.sizes or [str(base.vocab)]
    sizes = [str(size) for size in SIZES] if sizes == ["all"] else sizes
    for vocab in map(int, sizes):
        for dtype in options.dtypes or [s.dtype for s in defaults]:
            for logits in options.logits:
                yield replace(base, vocab=vocab, dtype=dtype, logits=logits)


def comparisons(options: argparse.Namespace) -> Iterator[Comparison]:
    cold, warm = Timer(options.device), BurstTimer()
    entries = implementations(options.peers)
    chosen = [BY_NAME[options.op]] if options.op else OPS
    groups = CASES if options.op or options.group == "all" else [options.group]
    for group in groups:
        ops = [op for op in chosen if op.group == group]
        repeats = options.repeats or REPEATS.get(group, 7)
        # Settings outside: ops share inputs, which are kept from one to the next.
        for number, case in enumerate(cases(options, group)) if ops else ():
            wants_peaks = options.peaks == "all" or (options.peaks == "first" and number == 0)
            for op in ops:
                timer = warm if op.tiny else cold
                comparison = compare(op, case, entries, repeats, timer)
                yield with_peaks(comparison, peak_of) if wants_peaks and not op.tiny else comparison


def tables(found: Iterable[Comparison]) -> list[Comparison]:
    """Prints each as it comes."""
    kept = []
    for comparison in found:
        print(table(comparison) + "\n", flush=True)
        kept.append(comparison)
    return kept


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("LOGITLESS_NUM_THREADS", str(options.threads))
    about = machine(options.device, libraries())
    print("\n".join(f"{key:24} {value}" for key, value in about.items()) + "\n", flush=True)
    found = tables(comparisons(options))
    print("\n".join(check_targets(found)))
    name = options.op.replace(" ", "-") if options.op else options.group
    data = options.json or Path("runs/bench") / f"{name}.json"
    picture = options.plot or Path("runs/bench") / f"{name}.png"
    data.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "matches": [comparison.as_json() for comparison in found]}
    data.write_text(json.dumps(content, indent=1) + "\n")
    plot(found, picture)
    print(f"written: {data}, {picture}")


if __name__ == "__main__":
    main()
