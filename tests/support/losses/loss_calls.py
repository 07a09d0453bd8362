"""policy_loss in torch, called on a batch of loss_specs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from logitless.loss.spec import PolicyLossSpec
from logitless.ops.policy_loss import policy_loss
from tests.support.losses.loss_specs import Batch


def tensors(batch: Batch) -> dict[str, Any]:
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in vars(batch).items()}


def with_grad(t: dict[str, Any]) -> dict[str, Any]:
    return {k: x.clone().requires_grad_(k in ("logp", "entropy")) for k, x in t.items()}


def ours(t: dict[str, Any], spec: PolicyLossSpec, **options: Any) -> Any:
    return policy_loss(
        t["logp"], t["old_logp"], t["advantages"], t["mask"], spec, entropy=t["entropy"],
        ref_logp=t["ref_logp"], rollout_logp=t["rollout_logp"], old_entropy=t["old_entropy"],
        **{"token_ids": t["token_ids"], **options},
    )  # fmt: skip
