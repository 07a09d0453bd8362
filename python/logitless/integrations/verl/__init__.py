"""verl with this library's losses, head and batch-exact selection.

    VERL_USE_EXTERNAL_MODULES=logitless.integrations.verl python -m verl.trainer.main_ppo ...

or nothing at all: where both are installed verl finds it by itself. It adds names, and changes
nothing of verl's until a configuration uses one of them: docs/verl.md.
"""

from __future__ import annotations

from logitless.integrations.verl.installation import install
from logitless.integrations.verl.losses import register

__all__ = ["install", "register"]

install()
