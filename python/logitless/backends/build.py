"""Public: what this build holds and what this CPU runs, as the compiled core says it."""

from __future__ import annotations

from logitless import _core

build_info = _core.runtime.build_info
