"""What torch.compile leaves out of its graphs."""

from __future__ import annotations

from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="batch_stats and covariance give Python numbers of their data, which no graph can hold: "
    "call them outside of what is compiled, once per optimizer step"
)
def untraced(function: Any, *args: Any, **options: Any) -> Any:
    return function(*args, **options)
