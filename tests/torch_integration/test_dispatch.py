"""Plain CPU tensors reach a kernel without torch's dispatcher; whoever watches sees the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import logitless as ll
from tests.support.heads import batch, problem
from tests.support.plans import CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal

H, W, T = problem(1, 12, 16, 300, torch.float32)
Z = (H @ W.T).detach().requires_grad_()
DATA = {k: v.requires_grad_(k in ("hidden", "weight")) for k, v in batch().items()}
LOGP = torch.full((12,), -1.0, requires_grad=True)
MASK, ADVANTAGES = torch.ones(12, dtype=torch.bool), torch.linspace(-1, 1, 12)
PPO = ll.presets["ppo"]


def in_one_pass() -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        force(patch, CHUNKS["whole"])
        return ll.linear_policy_loss(**DATA, spec=PPO).loss


# The op of torch.ops.logitless -> a call of it, and what the call is differentiable in.
CALLS: dict[str, tuple[Callable[[], torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "row_stats": (lambda: ll.token_stats(Z, T).logp.sum(), (Z,)),
    "linear_stats": (lambda: ll.linear_token_stats(H, W, T).entropy.sum(), (H, W)),
    "policy_loss": (
        lambda: ll.policy_loss(LOGP, LOGP.detach() * 1.1, ADVANTAGES, MASK, PPO).loss, (LOGP,),
    ),
    "linear_policy_loss": (in_one_pass, (DATA["hidden"], DATA["weight"])),
}  # fmt: skip


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def results(name: str) -> list[torch.Tensor]:
    call, leaves = CALLS[name]
    loss = call()
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("name", CALLS)
def test_a_mode_sees_the_op_and_changes_no_bit(name: str) -> None:
    plain = results(name)
    with Watching() as mode:
        watched = results(name)
    assert name in mode.seen
    for ours, theirs in zip(watched, plain, strict=True):
        assert_bitwise_equal(ours, theirs)


@pytest.mark.parametrize("name", CALLS)
def test_a_profiler_sees_the_op(name: str) -> None:
    with torch.profiler.profile(acc_events=True) as profile:
        results(name)
    assert f"logitless::{name}" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", CALLS)
def test_without_a_watcher_the_dispatcher_is_not_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def call(overload: Any, *args: Any, **options: Any) -> Any:
        seen.append(overload._opname)
        return original(overload, *args, **options)

    original = torch._ops.OpOverload.__call__
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", call)
    CALLS[name][0]()
    assert name not in seen


def test_a_subclass_of_a_tensor_is_the_dispatchers() -> None:
    class Named(torch.Tensor):
        pass

    stats = ll.token_stats(Z.detach().as_subclass(Named), T)
    assert_bitwise_equal(stats.logp.as_subclass(torch.Tensor), ll.token_stats(Z, T).logp.detach())
