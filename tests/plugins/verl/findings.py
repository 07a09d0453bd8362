"""Prints the tables of docs/findings.md that are of verl: its fused head, and its micro-batches.

./dev plugins --findings
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import transformers
from torch import Tensor

from tests.plugins.verl.cases import MODELS
from tests.plugins.verl.engines import data, engine, save_model, scored
from tests.plugins.verl.table import splits


def off(folder: Path, backend: str, expected: dict[str, Tensor], mask: Tensor) -> str:
    """The largest difference of a log-prob in nats, or why there is none."""
    try:
        found = scored(engine(folder, backend), data())
    except Exception as error:
        return type(error).__name__
    return f"{(found['log_probs'] - expected['log_probs'])[mask].abs().max():.1e}"


def heads(folder: Path) -> Iterator[str]:
    """verl's engine by a fused head against the same by logits."""
    yield "| model | verl's fused head, nats off | this library's |\n|---|---|---|"
    for name, options in MODELS.items():
        model = save_model(folder / name.replace(" ", "_"), **options)
        td = data()
        expected, mask = scored(engine(model, None), td), td["response_mask"].bool()
        ours = off(model, "logitless", expected, mask)
        kind = getattr(transformers, f"{options.get('kind', 'Qwen2')}ForCausalLM")
        forward = kind.forward
        # verl puts its own into the class, for good.
        theirs = off(model, "torch", expected, mask)
        kind.forward = forward
        yield f"| {name} | {theirs} | {ours} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for table in (heads, splits):
            # verl prints what it patches.
            with contextlib.redirect_stdout(io.StringIO()):
                lines = list(table(Path(folder)))
            sys.stdout.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
