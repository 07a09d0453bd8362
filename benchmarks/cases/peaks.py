"""The process that measures the memory of one implementation of one op, and whoever starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import torch

import logitless as ll
from benchmarks.cases.registry import BY_NAME, implementations
from benchmarks.harness.case import Case
from benchmarks.harness.comparison import make_calls
from benchmarks.harness.peak_memory import growth


def peak_of(op: str, case: Case, name: str) -> int:
    request = json.dumps([op, asdict(case), name])
    command = [sys.executable, "-m", "benchmarks.cases.peaks", request]
    answer = subprocess.run(command, capture_output=True, check=False, text=True)
    if answer.returncode != 0:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{answer.stderr}")
    return int(answer.stdout.splitlines()[-1])


def measure_here(op_name: str, case: Case, name: str) -> int:
    op = BY_NAME[op_name]
    chosen = [each for each in implementations(with_peers=True) if each.name == name]
    _, call = make_calls(op, chosen, op.inputs(case))[name]
    return growth(call, case.device, ll.release_memory)


if __name__ == "__main__":
    op_name, fields, name = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    sys.stdout.write(f"{measure_here(op_name, Case(**fields), name)}\n")
