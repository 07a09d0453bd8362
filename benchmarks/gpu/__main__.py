"""./dev gpu: builds, tests and measures on this machine's GPU, offline, in under ten minutes.

./dev gpu compare A.json B.json: a table of ratios of two runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.gpu import orchestrate, ratios
from benchmarks.gpu.report import NAME as REPORT
from benchmarks.gpu.runner import Job
from benchmarks.gpu.stage_table import ALL_SECONDS, REHEARSAL_SLACK, STAGES
from benchmarks.gpu.store import load


def comma(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parse(arguments: list[str]) -> argparse.Namespace:
    stages = "".join(f"  {s.name:12} {s.seconds:4} s  {s.what}\n" for s in STAGES)
    parser = argparse.ArgumentParser(
        prog="./dev gpu",
        description=__doc__,
        epilog=f"stages and their limits:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, help="folder of the results (benchmarks/results/gpu-DEVICE-DATE)")
    add("--only", type=comma, default=[], metavar="STAGE,...", help="these stages")
    add("--skip", type=comma, default=[], metavar="STAGE,...", help="all but these")
    add("--rehearse", action="store_true", help="the same on a CPU: tiny, emulated, no times")
    add("--fresh", action="store_true", help="forget what the folder holds")
    add("--seconds", type=float, help=f"for everything ({ALL_SECONDS})")
    options = parser.parse_args(arguments)
    slack = REHEARSAL_SLACK if options.rehearse else 1
    options.seconds = options.seconds or slack * ALL_SECONDS
    return options


def main(arguments: list[str]) -> int:
    # As an error and not as death: then the stage that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments[:1] == ["compare"]:
            first, second = parse_compare(arguments[1:])
            print(ratios.table(load(first), load(second), (str(first), str(second))))
            return 0
        options = parse(arguments)
        out = options.out or orchestrate.default_out(options.rehearse)
        job = Job(out.resolve(), options.rehearse)
        stages = orchestrate.chosen(options.only, options.skip)
        good = orchestrate.run(job, stages, options.seconds, fresh=options.fresh)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"./dev gpu: {error}\n")
        return 2
    print((job.out / REPORT).read_text())
    print(f"[gpu] written to {job.out}")
    return 0 if good else 1


def parse_compare(arguments: list[str]) -> tuple[Path, Path]:
    parser = argparse.ArgumentParser(prog="./dev gpu compare", description=ratios.__doc__)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    return options.first, options.second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
