"""TRL's AsyncDistillation: its divergence and ours over candidates, alone and in training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless.integrations.trl import hooks, install
from logitless.integrations.trl.columns import candidate_logp, likeliest
from logitless.integrations.trl.distillation import asynchronous
from tests.plugins.trl.distillation.without_servers import STEPS, TOP, asynchronous_trainer
from tests.plugins.trl.setting import VOCAB, quiet, save_model
from tests.plugins.trl.whole import largest, trained

pytestmark = pytest.mark.filterwarnings("ignore")
CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap, scale, bias": {"softcap": 4.0, "scale": 0.6, "bias": True},
    "temperature, three teachers": {"temperature": 0.7, "teachers": 3},
    "no tail": {"tail": False},
    "sixteen bits": {"dtype": torch.bfloat16},
}


def outcome(
    function: Any,
    beta: float,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    bias: bool = False,
    temperature: float = 1.0,
    tail: bool = True,
    teachers: int = 1,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The sums, and the gradients of hidden, weight and bias."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    rows = 23
    leaves = [normal(rows, 16).to(dtype), normal(VOCAB, 16).to(dtype)]
    leaves += [normal(VOCAB).to(dtype)] if bias else []
    for x in leaves:
        x.requires_grad_()
    ids = torch.stack([torch.randperm(VOCAB, generator=g)[:TOP] for _ in range(rows)])
    teacher = normal(rows, VOCAB).log_softmax(-1).gather(-1, ids)
    valid = torch.rand(rows, TOP, generator=g) < 0.8
    # one at least, as TRL sees to
    valid[:, 0] = True
    of_teachers = torch.randint(0, teachers, (rows,), generator=g) if teachers > 1 else None
    out = function(
        leaves[0], leaves[1], leaves[2] if bias else None, scale, softcap,
        ids.masked_fill(~valid, -1), teacher.masked_fill(~valid, -torch.inf), valid, beta,
        temperature, tail, of_teachers, teachers, 8,
    )  # fmt: skip
    found = torch.autograd.grad(out[0], leaves)
    return [x.detach().double() for x in (*out, *found)]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_trls(beta: float, chain: str) -> None:
    theirs = hooks.find(asynchronous.MODULE, "_chunked_jsd_loss")
    ours = asynchronous.chunked_jsd_loss(theirs, {})
    # what a gradient of 16 bits is rounded to
    near = 1e-2 if "dtype" in CHAINS[chain] else 5e-6
    a, b = (outcome(x, beta, **CHAINS[chain]) for x in (theirs, ours))
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert float((x - y).abs().max()) <= near * max(1.0, float(x.abs().max()))


def head(*, adapter: bool, dtype: torch.dtype = torch.float64) -> Any:
    from logitless.integrations.trl.call import HeadCall

    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype).requires_grad_()

    options: dict[str, Any] = {
        "bias": normal(40),
        "softcap": 3.0,
        "logit_scale": 0.7,
        "temperature": 0.9,
    }
    if adapter:
        options["adapter"] = [(normal(2, 6), normal(40, 2), 0.5)]
    return HeadCall(normal(2, 3, 6), normal(40, 6), options)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_candidates(adapter: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole vocabulary's log-probs, values and gradients, in float64; ids repeat."""
    from logitless.integrations.trl import columns

    monkeypatch.setattr(columns, "GATHERED", block)
    call = head(adapter=adapter)
    ids = torch.randint(0, 40, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    weight = call.weight
    for A, B, scale in call.options.get("adapter", []):
        weight = weight + scale * B @ A
    z = 3.0 * torch.tanh(0.7 * (call.hidden @ weight.T + call.options["bias"]) / 3.0) / 0.9
    logp = z.log_softmax(-1)
    plain = logp.gather(-1, ids), -(logp.exp() * logp).sum(-1)
    found = candidate_logp(call, ids)
    leaves = [call.hidden, call.weight, call.options["bias"]]
    leaves += [x for one in call.options.get("adapter", []) for x in one[:2]]
    g = [torch.randn(x.shape, dtype=x.dtype) for x in plain]
    expected, gradients = (torch.autograd.grad(x, leaves, g) for x in (plain, found))
    for x, y in zip((*plain, *expected), (*found, *gradients), strict=True):
        torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)


def test_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    from logitless.integrations.trl import columns

    monkeypatch.setattr(columns, "TILE", 7)
    call = head(adapter=True, dtype=torch.float32)
    everything = torch.arange(40).expand(2, 3, 40)
    logp, _ = candidate_logp(call, everything)
    assert torch.equal(likeliest(call, 9), logp.topk(9).indices)


@pytest.mark.parametrize("beta", [0.0, 0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_steps_of_training(beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path)
    found = []
    for ours in (False, True):
        with quiet(), install() if ours else contextlib.nullcontext():
            found.append(trained(asynchronous_trainer(folder, beta, monkeypatch)))
    theirs, with_us = (
        run._replace(logs=[{k: v for k, v in row.items() if of_model(k)} for row in run.logs])
        for run in found
    )
    assert len(theirs.logs) >= STEPS
    off = largest(theirs, with_us)
    assert off["jsd"] <= 1e-5 and off["entropy"] <= 1e-4 and off["teacher_entropy"] <= 1e-5, off
    assert off["loss"] <= 1e-4 and off["grad_norm"] <= 1e-2, off


def of_model(name: str) -> bool:
    """No clock and no queue."""
    return not name.startswith(("perf/", "sample/", "batch/"))
