"""A frozen head with a trained adapter of rank 16: beside the merged weight, whose gradient is made
in full."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import calls
from benchmarks.cases.contenders.ours import our_head
from benchmarks.cases.inputs import HeadInputs, generator, head_inputs
from benchmarks.harness.case import Call, Case, Expected, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference

RANK, SCALE = 16, 0.5


@dataclass(frozen=True)
class AdaptedHeadInputs(HeadInputs):
    A: Tensor  # [r, H]
    B: Tensor  # [V, r]

    def first(self, n: int) -> AdaptedHeadInputs:
        return AdaptedHeadInputs(**vars(super().first(n)), A=self.A, B=self.B)


@functools.lru_cache(maxsize=2)
def adapted_head(case: Case) -> AdaptedHeadInputs:
    x, g = head_inputs(case), generator(case)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=case.device)

    A, B = normal(RANK, case.width) / case.width**0.5, normal(case.vocab, RANK) / 16
    return AdaptedHeadInputs(**vars(x), A=A.to(x.hidden.dtype), B=B.to(x.hidden.dtype))


def merged(function: Callable[..., Results], x: AdaptedHeadInputs) -> Call:
    """W + scale * B A, as a head without adapters needs it."""

    def head(hidden: Tensor, A: Tensor, B: Tensor) -> Results:
        return function(hidden, x.weight + SCALE * (B @ A), x.targets)

    return _both(head, x)


def adapted_variants(x: AdaptedHeadInputs) -> dict[str, Call]:
    def head(hidden: Tensor, A: Tensor, B: Tensor) -> Results:
        return our_head(hidden, x.weight, x.targets, adapter=(A, B, SCALE))

    return {"logitless, adapter": _both(head, x)}


def _both(head: Any, x: AdaptedHeadInputs) -> Call:
    def run(_: None) -> Results:
        leaves = {"hidden": calls.leaf(x.hidden), "A": calls.leaf(x.A), "B": calls.leaf(x.B)}
        results = head(*leaves.values())
        return {**calls.detached(results), **calls.gradients(results, x.upstream, leaves)}

    return Call(run)


def adapted_oracle(x: AdaptedHeadInputs) -> Oracle:
    h, adapter, targets = f64(x.hidden), (f64(x.A), f64(x.B), SCALE), x.targets.cpu().numpy()
    w, up = reference.merged_weight(f64(x.weight), [adapter]), f64(x.upstream)
    values = reference.linear_token_stats(h, w, targets)

    @functools.cache
    def gradients(with_entropy: bool) -> Any:
        g: dict[str, Any] = {"g_logp": up, "g_entropy": up if with_entropy else 0.0}
        dhidden, dmerged, _ = reference.linear_token_stats_backward(h, w, targets, **g)
        return dhidden, *reference.adapter_backward(dmerged, adapter)

    def expected(results: Results) -> Expected:
        found = zip(("dhidden", "dA", "dB"), gradients("entropy" in results), strict=True)
        return {**values, **dict(found)}

    return expected


def adapted_bytes(s: Case) -> dict[str, int]:
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {
        "read hidden": hidden,
        "read weight, forward and for dhidden": 2 * weight,
        "write dhidden": hidden,
        "write dB": s.vocab * RANK * s.itemsize,
    }


def adapted_flops(s: Case) -> float:
    return 2.0 * s.rows * s.vocab * (2 * s.width + 3 * RANK)
