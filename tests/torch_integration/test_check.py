"""ll.check: right code passes on any head, wrong code is shown for what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

import logitless as ll
from logitless.backends import registry
from logitless.backends.cpu import CpuRows
from logitless.backends.row_kernels.rows import Rows
from logitless.diagnostics import check as check_module


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
    exact, rounded = (
        ll.check(head, batch, logits_dtype=d) for d in (torch.float32, torch.bfloat16)
    )
    assert exact.errors["logp"].ours < 1e-5 < rounded.errors["logp"].ours


class Wrong(CpuRows):
    """Entropies that are a hundredth too large, and so is their gradient."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        kernels: Any = self
        kernels.finalize, kernels.gradient = self.wrong_finalize, self.wrong_gradient

    def wrong_finalize(self, *args: Any, entropy: Any, **outputs: Any) -> None:
        self.core.finalize(*args, entropy=entropy, **outputs)
        entropy *= 1.01

    def wrong_gradient(self, *args: Any, g_entropy: Any, **options: Any) -> None:
        scaled = None if g_entropy is None else 1.01 * g_entropy
        self.core.gradient(*args, g_entropy=scaled, **options)


def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.BACKENDS, "cpu", replace(registry.get("cpu"), rows=Wrong))
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


class Head(torch.nn.Module):
    """A Linear and what is done to its logits."""

    def __init__(self, linear: torch.nn.Linear, then: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.then = linear, then

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.then(self.linear(hidden))


class Lora(torch.nn.Module):
    """As peft wraps a Linear: its weight is the base's, and dropout is on in training."""

    def __init__(self, base: torch.nn.Linear, size: float) -> None:
        super().__init__()
        self.base_layer = base
        kind = base.weight.dtype
        self.lora_A = torch.nn.Linear(base.in_features, 4, bias=False, dtype=kind)
        self.lora_B = torch.nn.Linear(4, base.out_features, bias=False, dtype=kind)
        self.lora_dropout = torch.nn.Dropout(0.5)
        torch.nn.init.constant_(self.lora_B.weight, size)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.lora_B(self.lora_A(self.lora_dropout(hidden)))
        return self.base_layer(hidden) + added


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_module_adds_is_seen(dtype: torch.dtype) -> None:
    head, batch = make(dtype, bias=False)
    g = torch.Generator().manual_seed(1)
    extra = torch.randn(3000, generator=g).to(dtype)
    for then, message in (
        (lambda z: 5 * torch.tanh(z / 5), r"a softcap of about (5|4\.98), pass softcap="),
        (lambda z: z * 0.25, r"a scale of about 0\.25, pass logit_scale="),
        (lambda z: z + extra, "a bias, pass bias="),
        (lambda z: z.masked_fill(torch.arange(3000) == 7, -torch.inf), "up to inf"),
        (lambda z: z * 2 + z.sort(-1).values, "an adapter, a softcap or a scale"),
    ):
        result = ll.check(Head(head, then), batch)
        assert all(e.ours <= e.allowed for e in result.errors.values())
        assert not result.ok
        assert re.search(message, result.cause), result.cause
        assert result.cause in str(result)
        with pytest.raises(AssertionError, match=r"module .* <- off"):
            result.raise_if_off()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_say_what_a_module_does(dtype: torch.dtype) -> None:
    head, batch = make(dtype)
    for then, options in (
        (lambda z: z, {}),
        (lambda z: z, {"softcap": 5.0, "temperature": 0.7, "logit_scale": 0.5}),
        (lambda z: 5 * torch.tanh(z / 5), {"softcap": 5.0}),
        (lambda z: 5 * torch.tanh(z / 10), {"softcap": 5.0, "logit_scale": 0.5}),
        (lambda z: 5 * torch.tanh(z / 5) / 0.7, {"softcap": 5.0, "temperature": 0.7}),
        (lambda z: z * 0.25, {"logit_scale": 0.25, "temperature": 2.0}),
    ):
        result = ll.check(Head(head, then), batch, bias=head.bias, **options)
        assert result.ok, (options, result.cause)
        assert result.module is not None
    # a bias that the module has and the options have not
    assert "a bias" in ll.check(Head(head, lambda z: z), batch).cause
    assert "a bias" in ll.check(head, batch, bias=None).cause


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adapters(dtype: torch.dtype) -> None:
    head, batch = make(dtype, bias=False)
    adapted = Lora(head, 0.1).train()
    adapted.lora_A.eval()
    result = ll.check(adapted, batch)
    assert not result.ok
    assert "it has an adapter (lora_A, lora_B, lora_dropout), merge it" in result.cause
    modes = [module.training for module in adapted.modules()]
    assert modes == [True, True, False, True, True]
    # one that adds nothing, as before the first step, and one that is merged
    assert ll.check(Lora(head, 0.0), batch).ok
    merged = torch.nn.Linear(32, 3000, bias=False, dtype=dtype)
    added = adapted.lora_B.weight @ adapted.lora_A.weight
    merged.weight.data = head.weight.data + added.data
    assert ll.check(merged, batch).ok
    # what is given as a weight is not called
    alone = ll.check(adapted.weight, batch)
    assert (alone.ok, alone.module) == (True, None)


def test_what_a_module_returns() -> None:
    head, batch = make(torch.float32, bias=False)

    class Output(NamedTuple):
        loss: None
        logits: torch.Tensor

    good: list[Callable[[torch.Tensor], Any]] = [
        lambda z: (z, None), lambda z: {"logits": z}, lambda z: Output(None, z), lambda z: z[None],
    ]  # fmt: skip
    for then in good:
        assert ll.check(Head(head, then), batch).ok
    bad: list[tuple[Callable[[torch.Tensor], Any], type[Exception], str]] = [
        (lambda z: z[:, :100], ValueError, r"must give \[16, V\] = \[16, 3000\].* got \[16, 100\]"),
        (lambda z: z[:3], ValueError, r"got \[3, 3000\] from Head"),
        (lambda z: None, TypeError, "must give logits .* got NoneType from Head"),
        (lambda z: z.argmax(-1), TypeError, r"must give logits .* got torch.int64 from Head"),
        (lambda z: z.view(4, 4, 7), ValueError, r"must take hidden \[16, 32\] .* RuntimeError"),
    ]
    for then, error, message in bad:
        with pytest.raises(error, match=message):
            ll.check(Head(head, then), batch)
    with pytest.raises(TypeError, match=r"a module with \.weight, or a weight, got Dropout"):
        ll.check(torch.nn.Dropout(), batch)


def test_under_autocast() -> None:
    head, batch = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ll.check(head, batch).ok
        mixed = batch._replace(hidden=batch.hidden.bfloat16())
        assert ll.check(head, mixed).ok
        assert not ll.check(Head(head, lambda z: z * 1.1), batch, bias=head.bias).ok


def test_a_sharded_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 makes a subclass of the module's own class and of this one."""
    from torch.distributed.fsdp import FSDPModule

    head, batch = make(torch.float32)
    head.__class__ = type("FSDPLinear", (FSDPModule, torch.nn.Linear), {})
    with pytest.raises(TypeError, match="got the sharded FSDPLinear: call check before the model"):
        ll.check(head, batch)
