"""logitless: log-prob, entropy, covariance and clipped policy losses without vocabulary-sized logits.

Everything public is here. Names load on first use, so that importing logitless imports neither
torch nor the compiled core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitless._version import __version__

if TYPE_CHECKING:
    from logitless.ops.linear_token_stats import linear_token_stats
    from logitless.ops.outputs import TokenStats
    from logitless.ops.plan import Plan, plan
    from logitless.ops.token_stats import token_stats

# Public name -> module that holds it.
_HOMES = {
    "token_stats": "logitless.ops.token_stats",
    "TokenStats": "logitless.ops.outputs",
    "linear_token_stats": "logitless.ops.linear_token_stats",
    "plan": "logitless.ops.plan",
    "Plan": "logitless.ops.plan",
}

__all__ = [
    "Plan",
    "TokenStats",
    "__version__",
    "linear_token_stats",
    "plan",
    "token_stats",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'logitless' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
