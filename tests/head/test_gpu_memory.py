"""What a head allocates in a GPU's tiles is what its plan says: counted on the CPU, storage by
storage, with products that compute nothing. Pieces of products of a few rows, which gemm.py makes,
are no part of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from logitless.backends import registry
from logitless.backends.row_kernels.rows import Rows
from logitless.inputs.options import EXACT
from logitless.ops.head.backward import (
    Gradients,
    Head,
    Served,
    active,
    backward,
    forward,
    new_state,
)
from logitless.ops.head.gemm import FEW_ROWS
from logitless.ops.head.planner.plan import plan_on
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.arguments import RowGradients
from logitless.ops.sharding.shard import Shard
from tests.support.device.devices import register
from tests.support.device.fakes import FakeRows
from tests.support.device.mixed import as_gpu, gpu

N, H, V = 72, 96, 7001
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# states, coefficients and flags of a row
ROW_BYTES = 1024


class NoProducts:
    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        out.zero_()

    def add(self, total: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> None:
        total.zero_()


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it hold at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            x.untyped_storage()._cdata
            for x in (*args, *(kwargs or {}).values())
            if isinstance(x, Tensor)
        }
        found = func(*args, **(kwargs or {}))
        self.held = {key: each for key, each in self.held.items() if not each[0].expired()}
        for x in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                storage = x.untyped_storage()
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return found


@pytest.mark.parametrize("gradients", ["all", "most", "few", "fixed"])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    "dtypes", [(F32, F32), (BF16, BF16), (BF16, F32), (F16, F32)],
    ids=["float32", "bfloat16", "bfloat16 to float32", "float16 to float32"],
)  # fmt: skip
def test_a_head_takes_what_was_planned(
    dtypes: Any, mixed: bool, gradients: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, logits_dtype = dtypes
    if gradients == "fixed" and dtype == F16:
        pytest.skip("float16 has no gradients of a fixed number of rows")
    register(monkeypatch, FakeRows)
    machine = gpu(tile_bytes=N * 4096 * 2)
    machine = as_gpu(monkeypatch, "triton", machine, mixed=mixed, products=NoProducts())
    h, w, some = torch.randn(N, H).to(dtype), torch.randn(V, H).to(dtype), torch.arange(N) % 6 == 0
    g = torch.ones(N, dtype=torch.float64)
    g = {"all": g, "most": g * ~some, "few": g * some}.get(gradients, g)
    asked, options = (N, H, V, dtype), {"logits_dtype": logits_dtype, "one_pass": False}
    mask = None
    if gradients == "fixed":
        mask, options["active_capacity"] = torch.arange(N) < 60, FEW_ROWS + 2
    ample = plan_on(machine, *asked, None, **options).total_bytes
    modes = set()
    for budget in range(ample // 10, ample + 1, ample // 30):
        try:
            plan = plan_on(machine, *asked, budget, **options)
        except ValueError:
            continue
        if plan.rows <= FEW_ROWS:
            continue
        tiling = Tiling.of(plan, V, dtype, logits_dtype)
        head = Head(h, w, tiling, Shard(), EXACT)
        rows = Rows(registry.get("triton"), N, torch.zeros(N, dtype=torch.int64), mask)
        rows, index = active(rows, tiling)
        kept, state = torch.empty(tiling.stored(N), dtype=logits_dtype), new_state(N, h)
        out = Gradients(torch.empty_like(h), torch.empty_like(w), None)
        coefficients = RowGradients.of(g[: rows.n], None, None)
        with Live() as live:
            f = forward(head, rows, index, kept, state, None, extras=False)
            served = Served.of(f, coefficients, EXACT)
            backward(head, f, coefficients, served, out)
        assert kept.nbytes == plan.kept_bytes
        assert live.peak <= plan.total_bytes - plan.kept_bytes + ROW_BYTES * N, plan
        modes.add(plan.mode)
    assert {"mix", "recompute"} <= modes
