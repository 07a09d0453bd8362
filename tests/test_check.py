"""ll.check: right code passes on any head, wrong code is shown for what it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

import logitless as ll
from logitless.ops import check as check_module
from logitless.ops.linear_token_stats import linear_token_stats


class Batch(NamedTuple):
    hidden: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor


def make(dtype: torch.dtype, bias: bool = True) -> tuple[torch.nn.Linear, Batch]:
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 3000, bias=bias, dtype=dtype)
    mask = torch.rand(4, 9) > 0.4
    return head, Batch(torch.randn(4, 9, 32).to(dtype) * 4, torch.randint(0, 3000, (4, 9)), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_head_and_a_batch(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    head, batch = make(dtype)
    result = ll.check(head, batch, temperature=0.8, softcap=30.0)
    assert result.ok
    assert result.raise_if_off() is result
    assert tuple(result.errors) == check_module.QUANTITIES
    assert result.rows == min(16, int(batch.mask.sum()))
    printed = capsys.readouterr().out
    assert "16 rows x 3000 vocabulary" in printed
    for name in check_module.QUANTITIES:
        assert f"\n{name} " in printed
    assert head.weight.grad is None


def test_a_mapping_and_a_weight() -> None:
    head, batch = make(torch.float32, bias=False)
    result = ll.check(head.weight, {"hidden": batch.hidden, "targets": batch.targets}, rows=5)
    assert (result.rows, result.ok) == (5, True)


def test_float32_logits_show_in_the_table() -> None:
    head, batch = make(torch.bfloat16)
    exact, rounded = (ll.check(head, batch, logits_dtype=d) for d in (torch.float32, None))
    assert exact.errors["logp"].ours < 1e-5 < rounded.errors["logp"].ours


def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arrays: Any, backend: str = "auto", **options: Any) -> Any:
        stats = linear_token_stats(*arrays, backend=backend, **options)
        return stats if backend == "torch" else stats._replace(entropy=stats.entropy * 1.01)

    monkeypatch.setattr(check_module, "linear_token_stats", wrong)
    head, batch = make(torch.float32)
    result = ll.check(head, batch)
    assert not result.ok
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("<- off")} == {
        "entropy", "d_hidden", "d_weight",
    }  # fmt: skip
    with pytest.raises(AssertionError, match="<- off"):
        result.raise_if_off()


def test_bad_batches() -> None:
    head, batch = make(torch.float32)
    with pytest.raises(TypeError, match="batch must have targets"):
        ll.check(head, {"hidden": batch.hidden})
    with pytest.raises(ValueError, match="at least one token"):
        ll.check(head, batch._replace(mask=torch.zeros_like(batch.mask)))
