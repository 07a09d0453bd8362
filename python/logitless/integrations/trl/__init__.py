"""TRL's trainers with this library's head, and a GRPO trainer with its losses.

    from logitless.integrations.trl import install
    install()                                    # then trl.GRPOTrainer(...) and the others as ever

    from logitless.integrations.trl import GRPOTrainer
    GRPOTrainer(model, reward_funcs, args, train_dataset=prompts, loss="clip_cov")

TRL is imported with the first use: docs/trl.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.integrations.trl.installation import install, uninstall

if TYPE_CHECKING:
    from logitless.integrations.trl.grpo import GRPOTrainer

__all__ = ["GRPOTrainer", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    if name != "GRPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from logitless.integrations.trl.grpo import GRPOTrainer

    globals()[name] = GRPOTrainer
    return GRPOTrainer
