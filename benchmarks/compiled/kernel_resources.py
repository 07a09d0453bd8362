"""Registers, spills and shared memory of every kernel: one committed table, and its check.

    ./dev kernels            write benchmarks/results/kernel_resources.md
    ./dev kernels --check    fail where a kernel spills, or where the table is not what is compiled

The table's halves name their compilers. A half is compared only where the versions agree, and
where there is no nvcc the CUDA half is left as it stands.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from benchmarks.compiled import nvcc_builds, triton_builds
from benchmarks.compiled.resources import SHARED_LIMIT, Measured, objections

TABLE = Path(__file__).parents[1] / "results" / "kernel_resources.md"
INTRODUCTION = """\
# What each kernel takes of a device

Written by `./dev kernels`, checked by `./dev kernels --check`: registers of a thread, bytes of a
thread that were spilled out of registers (none may be), bytes of shared memory of a block. On
gfx942 registers are vector + scalar ones. In a configuration, *all* is every option of a call at
once and *odd* a width that allows no wide loads; code that several calls share has the name of the
first. A backward in place is the same code as one that is not.
"""


def half(title: str, measured: list[Measured]) -> str:
    """A heading that names the compiler, and a row for each kernel and configuration."""
    targets = [name for name in SHARED_LIMIT if any(m.target == name for m in measured)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for kernel, configuration, target, (registers, spilled, shared) in measured:
        row = rows.setdefault((kernel, configuration), {})
        row[target] = f"{registers} / {spilled} / {shared}"
    lines = [f"## {title}", "", f"| kernel | configuration | {' | '.join(targets)} |"]
    lines.append("|---|---|" + "---|" * len(targets))
    for (kernel, configuration), row in sorted(rows.items()):
        cells = [f"`{kernel}`", configuration, *(row.get(target, "") for target in targets)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure() -> dict[str, list[Measured]]:
    """Title of a half -> its kernels; two processes, since a compiler takes one core."""
    triton = f"Triton {version('triton')}"
    halves: dict[str, list[Measured]] = {triton: []}
    jobs: list[tuple[str, Callable[[str], list[Measured]], str]] = [
        (triton, triton_builds.measure, target) for target in triton_builds.TARGETS
    ]
    nvcc = nvcc_builds.version()
    with tempfile.TemporaryDirectory() as folder:
        if nvcc is not None:
            title = f"CUDA, nvcc {nvcc}"
            halves[title] = []
            commands = nvcc_builds.commands(Path(folder))
            jobs += [(title, nvcc_builds.measure, command) for command in commands]
        # Not forked: torch and Triton have threads.
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            results = [(title, pool.submit(job, argument)) for title, job, argument in jobs]
            for title, result in results:
                halves[title] += result.result()
    return halves


def split(table: str) -> dict[str, str]:
    """Title -> half, of a table as written."""
    parts = table.split("## ")[1:]
    return {part.splitlines()[0]: "## " + part.rstrip() + "\n" for part in parts}


def maker(title: str) -> str:
    return title.split()[0]


def stale(committed: dict[str, str], fresh: dict[str, str]) -> tuple[list[str], list[str]]:
    """(what is wrong with the committed halves, what could not be compared)"""
    wrong, unknown = [], []
    for title, text in fresh.items():
        if title in committed:
            if committed[title] != text:
                wrong.append(f"{TABLE.name}: the half of {title} is stale: run ./dev kernels")
                old, new = committed[title].splitlines(), text.splitlines()
                wrong += [f"  - {line}" for line in old if line not in new]
                wrong += [f"  + {line}" for line in new if line not in old]
        elif any(maker(title) == maker(other) for other in committed):
            unknown.append(f"not compared: the table has another version than {title}")
        else:
            wrong.append(f"{TABLE.name} has no half of {title}: run ./dev kernels")
    makers = {maker(title) for title in fresh}
    absent = [title for title in committed if maker(title) not in makers]
    unknown += [f"not compared: no compiler here for the half of {title}" for title in absent]
    return wrong, unknown


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed table")
    check = parser.parse_args(arguments).check
    objection = nvcc_builds.objection() if nvcc_builds.version() else None
    if objection:
        sys.stderr.write(f"./dev kernels: {objection}\n")
        return 2
    measured = measure()
    fresh = {title: half(title, of) for title, of in measured.items()}
    committed = split(TABLE.read_text()) if TABLE.exists() else {}
    wrong = [line for of in measured.values() for line in objections(of)]
    old, unknown = stale(committed, fresh)
    if check:
        wrong += old
    else:
        makers = {maker(title) for title in fresh}
        kept = {title: text for title, text in committed.items() if maker(title) not in makers}
        halves = dict(sorted({**fresh, **kept}.items(), reverse=True))
        TABLE.write_text("\n".join([INTRODUCTION, *halves.values()]))
        print(f"{TABLE}: {sum(map(len, measured.values()))} kernels")
    for line in (*unknown, *wrong):
        print(line)
    counted = ", ".join(f"{len(of)} of {title}" for title, of in measured.items())
    print(f"{counted}: {'FAILED' if wrong else 'no spills'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
