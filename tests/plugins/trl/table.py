"""Prints the table of docs/trl.md: how far losses and gradients are from TRL's own.

./dev plugins --table
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.plugins.trl.cases import LOSSES, MODELS, Case
from tests.plugins.trl.setting import differences, generation, grpo, plain_model, run, save_model


def distances(case: Case, folder: Path) -> dict[str, dict[str, float]]:
    made = generation(plain_model(folder), **case.made)
    theirs = run(grpo("trl", folder, **case.args), made)
    ways = ("head",) if case.refused else ("head", "loss")
    return {way: differences(theirs, run(grpo(way, folder, **case.args), made)) for way in ways}


def cell(found: dict[str, float] | None) -> str:
    return "refused" if found is None else f"{found['gradient']:.1e}"


def row(name: str, found: dict[str, Any]) -> str:
    loss = max(x["loss"] for x in found.values())
    metrics = max(x["metrics"] for x in found.values())
    return (
        f"| {name} | {cell(found['head'])} | {cell(found.get('loss'))} | {loss:.0e} "
        f"| {metrics:.0e} |"
    )


def main() -> None:
    transformers.logging.set_verbosity_error()
    lines = [
        "| | gradient, install() | gradient, GRPOTrainer | loss | metrics |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, case in (LOSSES | MODELS).items():
            model = save_model(Path(folder) / name.replace(" ", "_"), **case.model)
            lines.append(row(name, distances(case, model)))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
