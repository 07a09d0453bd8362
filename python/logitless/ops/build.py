"""Public: what this build holds and what this CPU runs, as the compiled core says it."""

from __future__ import annotations

from logitless._core.runtime import build_info

__all__ = ["build_info"]
