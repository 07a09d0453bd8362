"""What calls on two or three ranks send to a device of the host's own numbers: nothing, once the
ranks know each other. See shards.py; a device may be named behind its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ["LOGITLESS_CHECK"] = "0"

import pytest
import torch
from torch import Tensor

import logitless as ll
from logitless.backends import registry
from logitless.backends.row_kernels import errors
from logitless.ops.head import inputs as head_inputs
from logitless.ops.sharding.shard import Shard
from tests.support import cases
from tests.support.device.devices import Device, losses_there
from tests.support.device.draws import drawing_there
from tests.support.device.waits import NoNumberIsSent, NothingIsSent, as_on_device
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.vocab.shards import LAYOUTS, RANK, WORLD, H, N, V, group, mine, run

DEVICE = Device(*(sys.argv[4:6] or ("cpu", "cpu")))
# An order that is not that of ranks, or a rank with nothing.
ENDS = LAYOUTS["reversed" if WORLD == 2 else "empty"]
Call = Callable[[], list[Tensor]]


def ours() -> dict[str, Any]:
    return {"vocab_start": ENDS[RANK][0], **group()}


def data() -> dict[str, Any]:
    """On the device, with this rank's columns."""
    generator = torch.Generator().manual_seed(2)
    h, w, u, x = (torch.randn(n, H, generator=generator) for n in (N, V, V, N))
    given = {
        "hidden": h, "weight": w[mine(ENDS)], "logits": (h @ w.T / 5)[:, mine(ENDS)],
        "other_hidden": x, "other_weight": u[mine(ENDS)],
        "other": (x @ u.T / 5)[:, mine(ENDS)], "bias": u[mine(ENDS), 0],
        "targets": cases.targets(2, N, V), "mask": cases.mask(2, N),
        "advantages": torch.randn(N, generator=generator),
        "old_logp": -8 + torch.randn(N, generator=generator) / 4, "ids": torch.arange(N) * 3,
    }  # fmt: skip
    return dict(zip(given, DEVICE.put(*given.values()), strict=True))


def calls(**options: Any) -> Iterator[tuple[str, Call]]:
    """Forward and backward of what the backend has. `options` of the heads."""
    given, has = data(), registry.get(DEVICE.backend).has

    def of(*names: str) -> list[Tensor]:
        return [given[name] for name in names]

    def with_gradients(call: Callable[..., Any], *names: str, **own: Any) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in of(*names)]
        out = call(*leaves, **own, **ours(), backend=DEVICE.backend)
        values = [out.loss] if hasattr(out, "loss") else list(out[:2])
        found = torch.autograd.grad(sum(x.sum() / 3 for x in values), leaves)
        return [*(x.detach() for x in values), *found]

    def head(*more: str, call: Any = ll.linear_token_stats, **own: Any) -> Call:
        return lambda: with_gradients(
            lambda h, w, **how: call(h, w, *of(*more), **how), "hidden", "weight", **options, **own
        )

    masked = {"mask": given["mask"]}
    yield (
        "token_stats",
        lambda: with_gradients(
            lambda z, **how: ll.token_stats(z, given["targets"], **how), "logits"
        ),
    )
    yield "linear_token_stats", head("targets", **masked, extras=("argmax", "varentropy"))
    # elsewhere a loss is made on the host
    backend = registry.get(DEVICE.backend)
    there = backend.asynchronous and backend.tokens is not None
    loss = ("targets", "old_logp", "advantages", "mask")
    if there:
        yield "linear_policy_loss", head(*loss, call=ll.linear_policy_loss, spec=ll.presets["ppo"])
    if options:
        return
    if has("tail_mass").ok:
        yield "tail_mass", head("targets", **masked, tail_mass=1e-2)
    if has("tail_mass").ok and there:
        yield (
            "a sparse loss",
            head(*loss, call=ll.linear_policy_loss, spec=ll.presets["ppo"], tail_mass=1e-2),
        )
    if has("divergence").ok:
        for kind in ("reverse_kl", "jsd"):
            yield (
                f"divergence, {kind}",
                lambda kind=kind: with_gradients(
                    lambda z, **how: ll.divergence(z, given["other"], kind=kind, **how), "logits"
                ),
            )
            others = ("other_hidden", "other_weight")
            yield (
                f"linear_divergence, {kind}",
                head(*others, call=ll.linear_divergence, kind=kind, **masked),
            )
    if has("linear_sample").ok:
        # what a CPU's draw keeps stays there
        limited = [{"top_p": 0.9}] if backend.asynchronous else []
        for limits in ({}, *limited):
            yield f"linear_sample, {limits}", partial(draw, given, limits)


def draw(given: dict[str, Tensor], limits: dict[str, Any]) -> list[Tensor]:
    head, bias, ids = (given["hidden"], given["weight"]), given["bias"], given["ids"]
    how = {"seed": 5, "step": 2, **ours(), **limits}
    with drawing_there(DEVICE), torch.no_grad():
        out = ll.linear_sample(*head, bias=bias, row_ids=ids, **how)
    return [out.token, out.logp, out.entropy]


def under(mode: Any, name: str, call: Call, right: list[Tensor]) -> None:
    try:
        with mode:
            found = call()
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error
    for x, y in zip(found, right, strict=True):
        assert_bitwise_equal(x, y)


def as_there() -> None:
    """For all that follows, in this process."""
    if registry.get(DEVICE.backend).asynchronous:
        patch = pytest.MonkeyPatch()
        as_on_device(DEVICE, patch)
        losses_there(DEVICE, patch)


def no_number_is_sent() -> None:
    """In calls whose backward, or mask, the host counts."""
    for name, call in calls():
        under(NoNumberIsSent(), name, call, call())


def nothing_waits() -> None:
    """With active_capacity, as while a graph is captured."""
    if not registry.get(DEVICE.backend).asynchronous:
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, call in calls(active_capacity=N):
            right = call()
            with patch.context() as captured:
                for module in (errors, head_inputs):
                    captured.setattr(module, "capturing", lambda device: True)
                under(NothingIsSent(), name, call, right)


def a_list_is_found() -> None:
    """Or the checks above could not fail."""

    def listed(shard: Shard, mine: Tensor) -> Tensor:
        everyone = gather(shard, mine)
        return everyone[list(range(len(everyone)))]

    gather = Shard.gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shard, "gather", listed)
        for name, call in calls():
            right = call()
            with pytest.raises(AssertionError, match=r"waits for aten\.lift_fresh"):
                under(NoNumberIsSent(), name, call, right)


if __name__ == "__main__":
    run(as_there, no_number_is_sent, nothing_waits, a_list_is_found)
