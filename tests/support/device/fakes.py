"""Row kernels that behave like a device's, on the CPU: bad rows lower a flag and nothing raises.

The wiring of the ops (backend choice, flags, temperatures, dispatch) is tested with them where
neither Triton's interpreter nor the CUDA emulator is at hand, and in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless import _core
from logitless.backends.row_kernels.errors import lower


class FakeRows:
    """Forward and gradient of the CPU core; finalize in plain torch."""

    def __init__(self, n: int, **shared: Any) -> None:
        self.core = _core.rows.Rows(n, **shared)
        self.targets, self.mask = shared["targets"], shared["mask"]
        row_scale = shared["row_scale"]
        self.scale = torch.full((n,), shared["scale"], dtype=torch.float64)
        self.scale = self.scale if row_scale is None else row_scale
        self.forward, self.gradient = self.core.forward, self.core.gradient

    def finalize(
        self, state: Tensor, vocab: int, error: Tensor, *, row_ids: Tensor | None = None, **out: Any
    ) -> None:
        m, s0, s1, s2, q0, q1, target, argmax = state.unbind(1)
        values = {"entropy": s0.log() - s1 / s0, "lse": m * self.scale + s0.log()}
        values["logp"] = (target - m) * self.scale - s0.log()
        values["varentropy"] = s2 / s0 - (s1 / s0) ** 2
        values["sum_p2"] = q0 / s0**2
        values["log_sum_p2"] = q0.log() - 2 * s0.log()
        values["mean_logit"] = m * self.scale + s1 / s0
        own = values["logp"].exp() * (values["logp"] + values["entropy"])
        values["entropy_change"] = (q1 - q0 * s1 / s0) / s0**2 - own.nan_to_num(0.0)
        values["argmax"] = argmax.nan_to_num(-1).long()
        outside = (self.targets < 0) | (self.targets >= vocab)
        kind = torch.where(values["lse"].float().isinf(), 5, 0)
        kind = torch.where(outside, 4, kind)
        for number, bad in ((3, s0 == 0), (2, s0.isnan()), (1, m == float("inf"))):
            kind = torch.where(bad, number, kind)
        active = torch.ones(len(m), dtype=torch.bool) if self.mask is None else self.mask
        wrong = (kind > 0) & active
        rows = torch.arange(len(m)) if row_ids is None else row_ids
        lower(error, wrong, rows, kind)
        for name, tensor in out.items():
            nothing, empty = (-1, -1) if name == "argmax" else (float("nan"), 0.0)
            tensor.copy_(values[name].masked_fill(wrong, nothing).masked_fill(~active, empty))


class FakeCurrent:
    """torch.cuda as far as the current device goes; two devices, of which 0 is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.entered = 0, 0
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        stream = SimpleNamespace(cuda_stream=7)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.now = self.now, device.index
        self.entered += 1
        yield
        self.now = before
