"""What the package remembers between calls does not grow with the specs that it is given."""

from __future__ import annotations

import collections
import dataclasses
import sys
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from tests.support.heads import batch  # noqa: E402

CONTAINERS = (dict, list, set, collections.deque, weakref.WeakValueDictionary, weakref.WeakSet)


def held() -> dict[str, int]:
    """Container of a module or of a class in it, or cached function -> how much it holds."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "logitless":
            continue
        owners: list[tuple[str, Any]] = [(name, module)]
        owners += [(f"{name}.{k}", v) for k, v in vars(module).items() if isinstance(v, type)]
        for owner, value in owners:
            for key, inner in list(vars(value).items()):
                if hasattr(inner, "cache_info"):
                    found[f"{owner}.{key}()"] = inner.cache_info().currsize
                elif isinstance(inner, CONTAINERS) and key != "__builtins__":
                    found[f"{owner}.{key}"] = len(inner)
    return found


def call(data: dict[str, Any], step: int) -> None:
    """A call of each op that takes a spec, whose coefficients have moved since the last step."""
    small = 1e-6 * (1 + step)
    spec = dataclasses.replace(
        ll.presets["ppo"], surrogate=ll.Clip(0.2 + small), kl=ll.KL("k2", small),
        entropy=ll.EntropyBonus(small), control=ll.ClipCov(0.2 + small, 0.0, 50.0),
    )  # fmt: skip
    old = data["old_logp"]
    ids = torch.arange(old.numel()).view_as(old)
    same: dict[str, Any] = {"advantages": data["advantages"], "mask": data["mask"], "spec": spec}
    given = {"token_ids": ids, "seed": 0, "step": step}
    stats = ll.batch_stats(old, data["advantages"], data["mask"], spec, old_logp=old, **given)
    options: dict[str, Any] = {"ref_logp": old, "token_ids": ids, "batch": stats}
    ll.policy_loss(old.clone().requires_grad_(), old, **same, entropy=-old, **options)
    arrays = {k: v.numpy() for k, v in options.items() if torch.is_tensor(v)}
    numbers = {k: v.numpy() if torch.is_tensor(v) else v for k, v in same.items()}
    ll.policy_loss(old.numpy(), old.numpy(), **numbers, entropy=-old.numpy(), **arrays, batch=stats)
    ll.linear_policy_loss(
        data["hidden"].requires_grad_(), data["weight"], data["targets"], old, **same, **options
    )


def test_nothing_grows_with_the_number_of_specs() -> None:
    """By then whatever is bounded is full; what holds the last few specs may hold one more."""
    data = {k: v[:1] if k != "weight" else v[:64] for k, v in batch().items()}
    data["targets"] = data["targets"] % 64
    sizes = []
    for step in range(1000):
        if step in (400, 999):
            sizes.append(held())
        call(data, step)
    before, after = sizes
    assert len(before) > 100
    assert {k: (before[k], n) for k, n in after.items() if n > before.get(k, 0) + 1} == {}
