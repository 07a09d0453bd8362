"""python -m tests.fuzz: see __init__.py."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from typing import Any


def load(path: str) -> Any:
    """The compiled core at `path`, whatever else is installed."""
    if not path:
        return importlib.import_module("logitless._core")
    spec = importlib.util.spec_from_file_location("_core", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--core", default="", help="file of the compiled core (else: installed)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--only", default="", help="part of the functions' names")
    parser.add_argument("--isa", default="", help="comma separated; the cases are shared out")
    options = parser.parse_args()
    core = load(options.core)
    from tests.fuzz.play import run

    started = time.perf_counter()
    counts: dict[str, int] = {}
    isas = options.isa.split(",") if options.isa else core.runtime.build_info()["isas"]
    for place, isa in enumerate(isas):
        os.environ["LOGITLESS_ISA"] = isa
        share = run(core, options.seed + place, options.cases // len(isas), options.only)
        for name, number in share.items():
            counts[name] = counts.get(name, 0) + number
    seconds = round(time.perf_counter() - started, 1)
    sys.stdout.write(
        json.dumps({"calls": sum(counts.values()), "seconds": seconds, **counts}) + "\n"
    )


main()
