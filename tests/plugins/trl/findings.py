"""Prints the first table of docs/findings.md: log-probs of TRL's head and ours beside the logits'.

./dev plugins --findings
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from logitless.integrations.trl.head import add_head
from tests.integrations.tiny_models import model_types, tiny

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


def cell(found: float | str) -> str:
    return found if isinstance(found, str) else f"{found:.1e}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        rows = list(compared())
    lines = ["| model type | TRL's head, nats off | this library's |", "|---|---|---|"]
    for name, theirs, ours in rows:
        if any(isinstance(x, str) or x > ROUNDING for x in (theirs, ours)):
            lines.append(f"| {name} | {cell(theirs)} | {cell(ours)} |")
    others = len(rows) + 2 - len(lines)
    lines.append(f"\nThe other {others} of {len(rows)} model types: both within {ROUNDING} nats.")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
