"""An adapter, tail_mass and two heads by the kernels of a device on two ranks: what one rank of the
CPU has. See shards.py; the device is named behind its arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.backends import registry
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.tolerances import assert_gradients
from tests.support.workers.vocab.shards import (
    COLUMNS,
    V,
    columns,
    compare,
    layouts,
    part,
    run,
    same_on_all_ranks,
    values,
    weighted,
)

N, H, R = 9, 24, 3
TAIL_MASS = 1e-2
DEVICE, CPU = Device(*sys.argv[4:6]), Device("cpu", "cpu")
TARGETS, MASK = cases.targets(2, N, V), cases.mask(2, N)
G = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x in cases.upstream(3, N)])

# Leaves and options -> what all ranks have, and what its gradients are of.
Call = Callable[..., tuple[list[Tensor], Tensor]]


def random(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def found(
    where: Device, call: Call, given: dict[str, Tensor], ends: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Values and gradients on a device; `ends` None: of one rank alone."""
    own = given if ends is None else {name: columns(name, x, ends) for name, x in given.items()}
    leaves = {name: where.put(x)[0].requires_grad_() for name, x in own.items()}
    t, mask, g = where.put(TARGETS, MASK, G)
    options = {} if ends is None else part(ends, {})
    outputs, loss = call(**leaves, t=t, mask=mask, g=g, backend=where.backend, **options)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return [x.detach().cpu() for x in outputs], dict(zip(leaves, gradients, strict=True))


def compared(call: Call, given: dict[str, Tensor], *, scale: float) -> None:
    right, of_one = found(CPU, call, given, None)
    for ends in layouts():
        ours, of_ranks = found(DEVICE, call, given, ends)
        same_on_all_ranks(*ours)
        compare(ours, right, torch.float32)
        for name, gradient in of_ranks.items():
            if name not in COLUMNS:
                same_on_all_ranks(gradient)
            assert of_one[name].abs().max() > 0
            truth = columns(name, of_one[name], ends)
            assert_gradients(gradient.cpu(), truth, torch.float32, scale=scale)


def adapter() -> None:
    """Its A and B, beside the weight's gradient."""

    def call(
        hidden: Tensor, weight: Tensor, A: Tensor, B: Tensor, *, t: Tensor, g: Any, **options: Any
    ) -> Any:
        stats = ll.linear_token_stats(hidden, weight, t, adapter=(A, B, 0.5), **options)
        return values(stats), weighted(stats, g)

    shapes = {"hidden": (N, H), "weight": (V, H), "A": (R, H), "B": (V, R)}
    compared(call, random(2, **shapes), scale=100)


def kept_entries() -> None:
    """Rows that are served from their entries and rows that are not."""
    if registry.get(DEVICE.backend).topk is None:
        return
    served: list[Tensor] = []

    def call(hidden: Tensor, weight: Tensor, *, t: Tensor, g: Any, **options: Any) -> Any:
        stats = ll.linear_token_stats(
            hidden, weight, t, tail_mass=TAIL_MASS, extras=("dropped_mass",), **options
        )
        served.append(stats.extras["dropped_mass"][MASK] <= TAIL_MASS)
        return values(stats), weighted(stats, g)

    given = random(3, hidden=(N, H), weight=(V, H))
    given["hidden"] *= torch.linspace(0.1, 4.0, N)[:, None]
    compared(call, given, scale=1e3)
    for rows in served:
        assert rows.tolist() == served[0].tolist()
        assert rows.any() and not rows.all()


def two_heads() -> None:
    """Of the student and of a teacher, whose columns are cut as the student's are."""
    teacher = random(5, hidden=(N, R), weight=(V, R))
    active = int(MASK.sum())
    for kind, beta, capacity in (
        ("reverse_kl", 0.5, None), ("forward_kl", 0.5, active), ("jsd", 0.3, active + 1),
    ):  # fmt: skip

        def call(
            hidden: Tensor, weight: Tensor, *, t: Tensor, mask: Tensor, g: Any, **options: Any
        ) -> Any:
            start = options.get("vocab_start", 0)
            other = (teacher["hidden"], teacher["weight"][start : start + len(weight)])
            options |= {"kind": kind, "beta": beta, "active_capacity": capacity}  # noqa: B023
            there = [x.to(hidden.device) for x in other]
            out = ll.linear_divergence(hidden, weight, *there, mask, **options)
            outputs = [out.divergence, out.entropy, out.teacher_entropy]
            return outputs, (out.divergence * g[0] + out.entropy * g[1]).sum()

        compared(call, random(4, hidden=(N, H), weight=(V, H)), scale=100)


if __name__ == "__main__":
    run(adapter, kept_entries, two_heads)
