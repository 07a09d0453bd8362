"""Prints the tables of docs/findings.md that are of TRL: heads beside logits, and a distillation.

./dev plugins --findings
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from logitless.integrations.trl import install
from logitless.integrations.trl.head import add_head
from tests.integrations.tiny_models import model_types, tiny
from tests.plugins.trl.distillation import heads
from tests.plugins.trl.distillation.heads import KINDS, distillation_trainer, with_head
from tests.plugins.trl.setting import generation, quiet

# Nats. Both heads sum in float32 over 97 entries: what rounding leaves is below 1e-5.
ROUNDING = 1e-4


def of_logits(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    scores: Tensor = logits.double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return scores


def off(model_type: str, add: Any, ids: Tensor, expected: Tensor) -> float | str:
    """The largest difference in nats, or why there is none."""
    model = tiny(model_type)
    try:
        add(model)
        found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    except Exception as error:
        return type(error).__name__
    return float((found - expected).abs().max())


def compared() -> Iterator[tuple[str, float | str, float | str]]:
    """Of each model type that can be built small and gives logits: how far off TRL and we are."""
    ids = torch.randint(3, 80, (2, 10), generator=torch.Generator().manual_seed(0))
    for model_type in model_types():
        try:
            expected = of_logits(tiny(model_type), ids)
        except Exception:
            continue
        theirs = off(model_type, add_fused_lm_head, ids, expected)
        yield model_type, theirs, off(model_type, add_head, ids, expected)


def divergence(model_type: str, folder: Path, block: Any) -> float | str:
    """The loss of DistillationTrainer at beta = 0, the forward KL, or why there is none."""
    student, teacher = with_head(model_type, 1), with_head(model_type, 2)
    with block(), quiet():
        trainer = distillation_trainer(folder, student, teacher, 0.0)
        trainer.model.eval()
        try:
            return float(trainer.compute_loss(trainer.model, generation(student)))
        except Exception as error:
            return type(error).__name__


def divergence_of_logits(model_type: str) -> float:
    student, teacher = with_head(model_type, 1), with_head(model_type, 2)
    made = generation(student)
    p, q = (heads.of_logits(x, made) for x in (teacher, student))
    mask = made["completion_mask"].bool()
    return float((p.exp() * (p - q)).sum(-1)[mask].mean())


def distilled() -> Iterator[str]:
    yield "\n| model type | of the logits | TRL's DistillationTrainer | this library's |"
    yield "|---|---|---|---|"
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found = [
                divergence(kind, Path(folder), block) for block in (contextlib.nullcontext, install)
            ]
        cells = (
            x if isinstance(x, str) else f"{x:.4f}" for x in (divergence_of_logits(kind), *found)
        )
        yield f"| {kind} | {' | '.join(cells)} |"


def cell(found: float | str) -> str:
    return found if isinstance(found, str) else f"{found:.1e}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        rows, divergences = list(compared()), list(distilled())
    lines = ["| model type | TRL's head, nats off | this library's |", "|---|---|---|"]
    for name, theirs, ours in rows:
        if any(isinstance(x, str) or x > ROUNDING for x in (theirs, ours)):
            lines.append(f"| {name} | {cell(theirs)} | {cell(ours)} |")
    others = len(rows) + 2 - len(lines)
    lines.append(f"\nThe other {others} of {len(rows)} model types: both within {ROUNDING} nats.")
    lines += divergences
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
