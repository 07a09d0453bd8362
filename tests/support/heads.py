"""Heads that the tests share: of statistics alone, and with all that a policy loss wants."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import logitless as ll
from tests.support import cases
from tests.support.losses.loss_specs import SPECS

B, T, H, V = 4, 6, 8, 2500


def problem(
    seed: int, n: int, hidden: int, vocab: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden, weight (leaves) and targets, with a few peaked rows: their hidden is a head row."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, hidden, generator=generator)
    w = torch.randn(vocab, hidden, generator=generator) / hidden**0.5
    h[: n // 3] = 8 * w[: n // 3]
    leaves = (x.to(dtype).requires_grad_() for x in (h, w))
    return (*leaves, cases.targets(seed, n, vocab))  # type: ignore[return-value]


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    data = {
        "hidden": torch.randn(B, T, H, generator=g),
        "weight": torch.randn(V, H, generator=g),
        "targets": torch.randint(0, V, (B, T), generator=g),
        "advantages": torch.randn(B, T, generator=g),
        "mask": torch.rand(B, T, generator=g) > 0.25,
    }
    logp = ll.linear_token_stats(data["hidden"], data["weight"], data["targets"]).logp
    data["old_logp"] = logp + 0.3 * torch.randn(B, T, generator=g)
    return data


def spec_of(name: str) -> ll.PolicyLossSpec:
    """The spec, selecting enough of 24 tokens to matter."""
    spec = SPECS[name]
    wide: dict[str, Any] = {
        "ClipCov": {"fraction": 0.3, "low": 0.01, "high": 50.0},
        "ClipB": {"mu": 0.1},
        "ClipV": {"mu": 0.0, "max_fraction": 0.3},
        "OffPolicyMask": {"delta": 0.01},
        "Entropic": {"threshold": 1e-5},
    }
    if spec.control is None or not (spec.selects or type(spec.control).__name__ in wide):
        return spec
    changes = wide.get(type(spec.control).__name__, {"fraction": 0.3})
    control: Any = spec.control
    return dataclasses.replace(spec, control=dataclasses.replace(control, **changes))


def inputs_of(spec: ll.PolicyLossSpec, data: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the spec needs beside the usual. The rollout's policy differs in but some sequences."""
    options: dict[str, Any] = {}
    some = torch.arange(B)[:, None] > 1
    shifts: dict[str, Any] = {"ref_logp": 0.1, "rollout_logp": 0.05 * some}
    for name in spec.needs & shifts.keys():
        options[name] = data["old_logp"] - shifts[name]
    if "old_entropy" in spec.needs:
        head = (data[k].detach() for k in ("hidden", "weight", "targets"))
        entropy = ll.linear_token_stats(*head, temperature=0.9).entropy
        options["old_entropy"] = entropy * (1 + 0.1 * torch.arange(T).remainder(3).sub(1))
    if "entropy_change" in spec.needs:
        head = (data[k].detach() for k in ("hidden", "weight", "targets"))
        scored = ll.linear_token_stats(*head, temperature=0.9, extras=("entropy_change",))
        ids = ll.token_ids(torch.arange(B)[:, None].expand(B, T), torch.arange(T).expand(B, T), T)
        options["token_ids"] = ids
        options["batch"] = ll.batch_stats(
            scored.logp, data["advantages"], data["mask"], spec, token_ids=ids, seed=0, step=0,
            entropy_change=scored.extras["entropy_change"],
        )  # fmt: skip
    return options
