"""What a public function does once: every check of its arguments, and the plan."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

import logitless as ll
from tests.support.heads import batch, problem

H, W, T = problem(1, 12, 16, 300, torch.float32)
Z = (H @ W.T).detach()
DATA = {k: v.requires_grad_(k in ("hidden", "weight")) for k, v in batch().items()}
MASK, IDS = torch.ones(12, dtype=torch.bool), torch.arange(12)
LOGP, ADVANTAGES = torch.full((12,), -1.0), torch.linspace(-1, 1, 12)
KEY: dict[str, Any] = {"seed": 0, "step": 0}
PPO, CLIP_COV = ll.presets["ppo"], ll.presets["clip_cov"]
CALLS: dict[str, Callable[[], Any]] = {
    "token_stats": lambda: ll.token_stats(Z, T, mask=MASK, temperature=0.7, extras=("argmax",)),
    "token_stats of arrays": lambda: ll.token_stats(Z.numpy(), T.numpy(), mask=MASK.numpy()),
    "linear_token_stats": lambda: ll.linear_token_stats(H, W, T, mask=MASK, softcap=9.0),
    "linear_token_stats with tail_mass": lambda: ll.linear_token_stats(H, W, T, tail_mass=1e-3),
    "linear_sample": lambda: ll.linear_sample(H.detach(), W.detach(), row_ids=IDS, **KEY),
    "linear_sample with top_k": lambda: ll.linear_sample(
        H.detach(), W.detach(), row_ids=IDS, top_k=5, **KEY
    ),
    "policy_loss": lambda: ll.policy_loss(LOGP, LOGP, ADVANTAGES, MASK, PPO, entropy=LOGP),
    "batch_stats": lambda: ll.batch_stats(
        LOGP, ADVANTAGES, MASK, CLIP_COV, old_logp=LOGP, token_ids=IDS, **KEY
    ),
    "covariance": lambda: ll.covariance(LOGP, ADVANTAGES, MASK),
    "linear_policy_loss": lambda: ll.linear_policy_loss(**DATA, spec=PPO),
    "linear_policy_loss with tail_mass": lambda: ll.linear_policy_loss(
        **DATA, spec=PPO, tail_mass=1e-3
    ),
    "linear_policy_loss of a whole sequence": lambda: ll.linear_policy_loss(
        **DATA, spec=ll.presets["gspo"]
    ),
}  # fmt: skip
# Beside what is named check_, refuse_ and require_.
ONCE = {"framework", "under_autocast", "plan", "choose"}
PREFIXES = ("check_", "refuse_", "require_")
# Hands out the sequences, wherever they are needed.
ACCESSORS = {"require_sequences"}


def checks(call: Callable[[], Any]) -> Counter[str]:
    """How often each check ran, those of one argument by its name."""
    seen: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith("logitless."):
            return
        if name not in ACCESSORS and (name in ONCE or name.startswith(PREFIXES)):
            about = [v for k, v in frame.f_locals.items() if k == "name" and isinstance(v, str)]
            seen[" ".join([f"{module}.{name}", *about])] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("name", CALLS)
def test_every_check_runs_once(name: str) -> None:
    CALLS[name]()
    seen = checks(CALLS[name])
    assert seen
    assert {check: n for check, n in seen.items() if n > 1} == {}
