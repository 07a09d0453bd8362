"""A student's divergence from a teacher, both of them heads of one vocabulary."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import calls
from benchmarks.cases.contenders.ours import our_divergence
from benchmarks.cases.inputs import HeadInputs, generator, head_inputs
from benchmarks.harness.case import Call, Case, Expected, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference

KINDS = ("reverse_kl", "forward_kl", "jsd")


@dataclass(frozen=True)
class TwoHeadInputs(HeadInputs):
    teacher_hidden: Tensor  # [N, G]
    teacher_weight: Tensor  # [V, G]

    def first(self, n: int) -> TwoHeadInputs:
        own = vars(super().first(n))
        return TwoHeadInputs(
            **own, teacher_hidden=self.teacher_hidden[:n], teacher_weight=self.teacher_weight
        )


@functools.lru_cache(maxsize=1)
def two_heads(case: Case) -> TwoHeadInputs:
    """A teacher of the student's size: its logits are the student's and noise."""
    x, g, dtype = head_inputs(case), generator(case).manual_seed(1), case.torch_dtype
    parts: list[Tensor] = []
    for own, scale in ((x.hidden, 0.3), (x.weight, 0.1)):
        noise = torch.randn(own.shape, generator=g, device=case.device)
        parts.append((own.float() + noise.mul_(scale * float(own.float().std()))).to(dtype))
    return TwoHeadInputs(**vars(x), teacher_hidden=parts[0], teacher_weight=parts[1])


def divergence_both(kind: str, function: Any, x: TwoHeadInputs) -> Call:
    """Forward and backward of the divergence alone: not everybody's entropy has a gradient."""

    def run(_: None) -> Results:
        leaves = {"hidden": calls.leaf(x.hidden), "weight": calls.leaf(x.weight)}
        results = function(*leaves.values(), x.teacher_hidden, x.teacher_weight, kind)
        up = x.upstream.to(results["divergence"].dtype)
        found = torch.autograd.grad(results["divergence"], list(leaves.values()), up)
        gradients = {f"d{name}": grad for name, grad in zip(leaves, found, strict=True)}
        return {**calls.detached(results), **gradients}

    return Call(run)


def divergence_oracle(kind: str, x: TwoHeadInputs) -> Oracle:
    heads = [f64(t) for t in (x.hidden, x.weight, x.teacher_hidden, x.teacher_weight)]
    values = reference.linear_divergence(*heads, kind=kind)
    dhidden, dweight, _ = reference.linear_divergence_backward(
        *heads, kind=kind, g_divergence=f64(x.upstream)
    )

    def expected(_: Results) -> Expected:
        return {**values, "dhidden": dhidden, "dweight": dweight}

    return expected


def divergence_floors(x: TwoHeadInputs) -> dict[str, Call]:
    """The products of both forward and of the student backward; with the logits of both made
    again."""
    rows = (len(x.hidden), len(x.hidden))
    return {
        "four bare products": calls.products(x, rows, 2),
        "six bare products": calls.products(x, rows, 4),
    }


def divergence_variants(kind: str, x: TwoHeadInputs) -> dict[str, Call]:
    small = functools.partial(our_divergence, memory_budget="256MiB")
    return {"logitless, 256MiB": divergence_both(kind, small, x)}


def divergence_bytes(s: Case) -> dict[str, int]:
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {
        "read both hidden, and the student's for dweight": 3 * hidden,
        "read both weights, and the student's for dhidden": 3 * weight,
        "write dhidden": hidden,
        "write dweight": weight,
    }
