"""The flag that device kernels lower for a bad row: which row is named, and whose call."""

from __future__ import annotations

import pytest
import torch

from logitless.backends.row_kernels import errors as row_errors
from tests.support.device.fakes import FakeCurrent


def test_a_capture_is_looked_for_on_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a first call within one is refused, naming what to do before."""
    fake = FakeCurrent(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.now == 1)
    with (
        pytest.raises(RuntimeError, match=r"the first call on cuda:1 must come before .*warm\("),
        row_errors.watched("token_stats", torch.device("cuda:1"), "[0, 5)"),
    ):
        pass


def test_an_error_names_who_else_it_may_be_of() -> None:
    watch = row_errors._Watch(torch.device("cpu"))
    for missed, captured, who in (
        (False, False, "op: row 2"),
        (True, False, r"op \(or a call before it\): row 2"),
        (False, True, r"op \(or a replayed CUDA graph\): row 2"),
        (True, True, r"op \(or a call before it or a replayed CUDA graph\): row 2"),
    ):
        watch.missed, watch.captured = missed, captured
        watch.flag.fill_(2 * 8 + 2)
        watch.after("op", 9)
        with pytest.raises(RuntimeError, match=f"^{who}: its logits hold a NaN"):
            watch.raise_found()


def test_the_first_bad_row_of_all_calls_is_kept() -> None:
    flag = torch.full((1,), row_errors.CLEAR)
    nan = float("nan")
    scale = torch.tensor([1.0, nan, 1.0, nan], dtype=torch.float64)
    row_errors.flag_temperatures(flag, scale[:1], None, None)
    assert flag.item() == row_errors.CLEAR
    row_errors.flag_temperatures(flag, scale, torch.tensor([True, False, True, True]), None)
    assert row_errors.describe(int(flag), "[0, 9)").startswith("row 3: its temperature")
    row_errors.flag_temperatures(flag, scale, None, torch.tensor([7, 2, 5, 1]))
    assert row_errors.describe(int(flag), "[0, 9)").startswith("row 1: ")
    assert row_errors.describe(8 * 6 + 4, "[0, 9)") == "row 6: its target is outside [0, 9)"
