"""Plans of graphs that serve any length: torch.compile sees a question, and each run answers it."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from logitless.ops.head.plan import Plan, plan
from logitless.ops.head.tiling import Tiles

if TYPE_CHECKING:
    from torch import Tensor

_ASKED = ("budget", "gradients", "backward", "one_pass", "split", "batch_invariant", "tail_mass")


def question(*asked: Any) -> str:
    """The options of `plan` in this order: what a graph holds where sizes are not known yet."""
    return json.dumps(dict(zip(_ASKED, asked, strict=True)))


# The backward asks what the forward has asked.
@functools.lru_cache(maxsize=256)
def _answer(text: str, n: int, width: int, vocab: int, dtype: str, logits_dtype: str) -> Plan:
    options = json.loads(text)
    options["gradients"] = tuple(options["gradients"])
    return plan(n, width, vocab, dtype, logits_dtype=logits_dtype, **options)


def answer(tiles: Tiles, hidden: Tensor, weight: Tensor) -> Plan:
    dtypes = str(hidden.dtype), str(tiles.dtype)
    return _answer(tiles.plan, *hidden.shape, len(weight), *dtypes)


def planned(tiles: Tiles, hidden: Tensor, weight: Tensor) -> Tiles:
    """The tiles themselves, or what these sizes make of a question."""
    if not tiles.plan:
        return tiles
    found = answer(tiles, hidden, weight)
    kept = min(found.kept_columns, len(weight))
    return Tiles(found.rows, found.columns, kept, tiles.dtype, found.fixed_rows)
