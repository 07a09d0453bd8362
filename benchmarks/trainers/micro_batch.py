"""A micro-batch of a trainer, loss and backward: as it is, and with this library.

    ./dev bench trainers [--verl] [--hidden 128 896] [--vocab 151936] [--tokens 512] [--repeats 7]
    ./dev bench trainers --device cuda     # TRL's on a GPU: its memory, the clock of its stream
    ./dev bench trainers --verl --step     # verl's whole step but for generation

The model is one random layer: what is compared is the head and the loss. Times are interleaved;
memory is the growth of the process's peak over one micro-batch, in a process of its own, gradients
of the head included. The floor is the three bare products of the head. The CPU's time, of all
threads, is what a machine with other users changes less.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import logitless as ll
from benchmarks.harness.case import Call
from benchmarks.harness.machine_info import installed, machine
from benchmarks.harness.peak_memory import growth
from benchmarks.harness.timing import Run, Timer, Times, interleave
from benchmarks.trainers.devices import add_device, check_device, environment
from benchmarks.trainers.sizes import Sizes, flops, moved, products

FLOOR = "three bare products"
# Of losses of the same micro-batch.
APART = 1e-4


class Line(NamedTuple):
    way: str
    seconds: tuple[float, ...]
    of_trainer: float  # the median of each round's quotient
    cpu: float  # median
    cpu_of_trainer: float
    peak_bytes: int | None  # None: of the floor

    @property
    def median(self) -> float:
        return Times(self.seconds).median


class CpuTimer(Timer):
    """The CPU's time of all threads as well."""

    def __call__(self, call: Call) -> Run:
        spent = 0.0

        def run(prepared: Any) -> Any:
            nonlocal spent
            before = time.process_time()
            found = call.run(prepared)
            spent = time.process_time() - before
            return found

        return super().__call__(replace(call, run=run))._replace(cpu=spent)


def setting(name: str) -> Any:
    """The module that makes the calls of a trainer; its first way is the trainer's own."""
    return importlib.import_module(f"benchmarks.trainers.{name}")


def peak_of(name: str, way: str, sizes: Sizes) -> int:
    command = [
        sys.executable, "-W", "ignore", "-m", "benchmarks.trainers.micro_batch", "--peak-of",
        json.dumps([name, way, *sizes]),
    ]  # fmt: skip
    found = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment(sizes.device)
    )
    return int(found.stdout.split()[-1])


def timed(name: str, sizes: Sizes, repeats: int) -> dict[str, Times]:
    made_by = setting(name)
    with tempfile.TemporaryDirectory() as folder:
        calls = {way: made_by.call(way, sizes, folder) for way in made_by.WAYS}
        losses = {way: call.run(call.prepare()) for way, call in calls.items()}
        if max(losses.values()) - min(losses.values()) > APART:
            raise RuntimeError(f"not timed, for these are not one loss: {losses}")
        calls[FLOOR] = products(sizes)
        return interleave(calls, repeats, CpuTimer(sizes.device), enough=float("inf"))


def measure(name: str, sizes: Sizes, repeats: int, *, peaks: bool = True) -> list[Line]:
    times = timed(name, sizes, repeats)
    # The models of all ways are gone before others are made.
    gc.collect()
    cpu = {way: replace(found, runs=found.cpu) for way, found in times.items()}
    own = next(iter(times))
    return [
        Line(
            way,
            found.runs,
            found.over(times[own]),
            cpu[way].median,
            cpu[way].over(cpu[own]),
            peak_of(name, way, sizes) if peaks and way != FLOOR else None,
        )
        for way, found in times.items()
    ]


def table(name: str, sizes: Sizes, lines: list[Line]) -> str:
    words, own = setting(name), lines[0]
    terms = ", ".join(f"{term} {size / 2**20:.0f} MiB" for term, size in moved(sizes).items())
    over = f"of {words.NAME}'s"
    rows = [
        f"Head, loss and backward must compute {flops(sizes) / 1e9:.0f} GFLOP and move {terms}",
        f"| H | | seconds | {over} | CPU s | {over} | MiB | {over} |",
        "|---" * 8 + "|",
    ]
    for line in lines:
        memory = "| |"
        if line.peak_bytes is not None and own.peak_bytes is not None:
            part = line.peak_bytes / own.peak_bytes
            memory = f"| {line.peak_bytes / 2**20:.0f} | {part:.2f} |"
        shown = words.WAYS.get(line.way, line.way)
        rows.append(
            f"| {sizes.hidden} | {shown} | {line.median:.2f} | {line.of_trainer:.2f} "
            f"| {line.cpu:.2f} | {line.cpu_of_trainer:.2f} {memory}"
        )
    return "\n".join(rows)


def as_json(sizes: Sizes, lines: list[Line]) -> dict[str, Any]:
    return {
        "sizes": sizes._asdict(),
        "floor": {"flops": flops(sizes), "bytes": moved(sizes)},
        "ways": {line.way: line._asdict() | {"median": line.median} for line in lines},
    }


def print_peak(name: str, way: str, *given: Any) -> None:
    sizes = Sizes(*given)
    with tempfile.TemporaryDirectory() as folder:
        call = setting(name).call(way, sizes, folder)
        print(growth(call, sizes.device, ll.release_memory))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verl", action="store_true", help="verl's micro-batch, not TRL's")
    parser.add_argument(
        "--step", action="store_true", help="old log-probs and two minibatches with AdamW"
    )
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 896])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    add_device(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peak_of:
        print_peak(*given.peak_of)
        return
    if given.verl and given.device != "cpu":
        parser.error("--verl runs on a CPU: its engine is made for one here")
    check_device(parser, given.device)
    trainer = "verl" if given.verl else "trl"
    name = f"{trainer}_step" if given.step else f"{trainer}_batch"
    versions = {package: installed(package) for package in (trainer, "transformers", "logitless")}
    facts = machine(given.device, versions)
    print(f"V = {given.vocab}, {given.tokens} tokens, float32, {facts}\n")
    found = []
    for hidden in given.hidden:
        sizes = Sizes(given.vocab, hidden, given.tokens, device=given.device)
        lines = measure(name, sizes, given.repeats)
        print(table(name, sizes, lines) + "\n", flush=True)
        found.append(as_json(sizes, lines))
    facts["load_after"] = os.getloadavg()
    if given.json:
        report = {"machine": facts, "rounds": given.repeats, "calls": found}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
