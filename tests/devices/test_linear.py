"""The head ops through device kernels: products where hidden is, loss of its log-probs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.device.mixed import as_gpu, gpu
from tests.support.heads import problem
from tests.support.plans import APART, CHUNKS, force
from tests.support.tolerances import assert_gradients, assert_values
from tests.support.workers.ranks import run_ranks

BF16, F32 = torch.bfloat16, torch.float32
WAYS = {"apart": APART, "one-pass": CHUNKS["whole"]}


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", [None, 700_000], ids=["keep", "recompute"])
def test_token_stats_of_a_head(device: Device, dtype: torch.dtype, kind: str, budget: Any) -> None:
    n, hidden, vocab = 11, 16, 4503
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(n, hidden, generator=generator).to(dtype)
    w = torch.randn(vocab, hidden, generator=generator).to(dtype)
    t, g, mask = cases.targets(1, n, vocab), cases.upstream(1, n), cases.mask(1, n)
    options = cases.chain(kind, 1, n, vocab)
    exact = {"mask": mask.numpy(), **cases.numpy_chain(options)}
    arrays = (cases.to_numpy(h), cases.to_numpy(w), t.numpy())
    truth = reference.linear_token_stats(*arrays, **exact)
    expected = reference.linear_token_stats_backward(
        *arrays, g_logp=g[0].numpy(), g_entropy=g[1].numpy(), g_lse=g[2].numpy(), **exact
    )

    def run(device: str, backend: str) -> tuple[ll.TokenStats, tuple[torch.Tensor, ...]]:
        there = {k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()}
        leaves = [x.to(device, copy=True).requires_grad_() for x in (h, w)]
        stats = ll.linear_token_stats(
            *leaves, t.to(device), mask=mask.to(device), backend=backend,
            memory_budget=budget, **there,
        )  # fmt: skip
        upstream = [x.to(device) for x in g]
        loss = stats.logp * upstream[0] + stats.entropy * upstream[1] + stats.lse * upstream[2]
        return stats, torch.autograd.grad(loss.sum(), leaves)

    stats, gradients = run(device.name, device.backend)
    # 16-bit tiles round the logits, as plain code does: compare against it, doubled.
    plain, plain_gradients = run("cpu", "torch")
    for name in ("logp", "entropy", "lse"):
        ours = getattr(stats, name)
        assert ours.device.type == torch.device(device.name).type
        worst = np.abs(cases.to_numpy(getattr(plain, name)) - truth[name]).max()
        assert_values(ours, truth[name], dtype, plain=truth[name] + worst)
        assert (ours.cpu()[~mask] == 0).all()
    for ours, plain_gradient, right in zip(gradients, plain_gradients, expected, strict=False):
        worst = np.abs(cases.to_numpy(plain_gradient) - right).max()
        assert_gradients(ours, right, dtype, scale=10 + 2 * worst / 1e-6)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["ppo", "kl_cov"])
def test_policy_loss_of_a_head(
    device: Device, name: str, way: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    data = {
        "hidden": torch.randn(4, 6, 8, generator=generator),
        "weight": torch.randn(2500, 8, generator=generator),
        "targets": torch.randint(0, 2500, (4, 6), generator=generator),
        "advantages": torch.randn(4, 6, generator=generator),
        "mask": torch.rand(4, 6, generator=generator) > 0.25,
    }
    data["old_logp"] = ll.linear_token_stats(
        data["hidden"], data["weight"], data["targets"], backend="cpu"
    ).logp + 0.3 * torch.randn(4, 6, generator=generator)
    force(monkeypatch, way)

    def run(device: str, backend: str) -> list[torch.Tensor]:
        there = {k: v.to(device, copy=True) for k, v in data.items()}
        leaves = [there[k].requires_grad_() for k in ("hidden", "weight")]
        out = ll.linear_policy_loss(**there, spec=ll.presets[name], backend=backend)
        assert out.loss.device == out.logp.device == leaves[0].device
        return [out.loss.detach().view(1), *torch.autograd.grad(out.loss, leaves)]

    loss, *gradients = run(device.name, device.backend)
    expected, *right = run("cpu", "cpu")
    assert_values(loss, expected, torch.float32)
    for ours, other in zip(gradients, right, strict=True):
        assert other.abs().max() > 0
        assert_gradients(ours, other, torch.float32, scale=5)


# Of the logits of 24 rows: kept as one tile, of which rows are gathered, and made again.
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "made again"])
@pytest.mark.parametrize("dtypes", [(F32, None), (BF16, None), (BF16, F32)], ids=str)
def test_a_head_in_a_gpus_tiles(
    device: Device, dtypes: Any, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their columns no multiple of the CPU's block, their rows apart of an odd vocabulary."""
    dtype, logits_dtype = dtypes
    n, vocab, columns = 24, 4501, 1280
    machine = gpu(column_quantum=256, tile_bytes=n * columns * (logits_dtype or dtype).itemsize)
    h, w, t = problem(11, n, 16, vocab, dtype)
    g = cases.upstream(11, n)[0] * (torch.arange(n) % 4 != 0)

    def run(where: str, backend: str) -> list[torch.Tensor]:
        leaves = [x.detach().to(where, copy=True).requires_grad_() for x in (h, w)]
        stats = ll.linear_token_stats(
            *leaves, t.to(where), backend=backend, logits_dtype=logits_dtype
        )
        loss = (stats.logp + stats.entropy).dot(g.to(where))
        return [stats.logp, *torch.autograd.grad(loss, leaves)]

    right = run("cpu", "cpu")
    as_gpu(monkeypatch, device.backend, machine, stands_in=device.name == "cpu")
    force(monkeypatch, Strategy(n, vocab if kept else columns, vocab if kept else 0))
    ours = run(device.name, device.backend)
    # products of another shape round otherwise
    slack = 0.03 if (logits_dtype or dtype) == BF16 else 5e-6
    assert_values(ours[0], right[0], F32, plain=right[0] + slack)
    for a, b in zip(ours[1:], right[1:], strict=True):
        scale = 2 + float(b.abs().max()) * (2e4 if dtype == BF16 else 9)
        device.assert_gradients(a, cases.to_numpy(b), scale=scale)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_a_vocabulary_of_two_ranks(device: Device, tmp_path: Path) -> None:
    """With an adapter, kept entries and a teacher."""
    store, where = str(tmp_path / "store"), [device.backend, device.name]
    run_ranks("vocab.device_heads", [[str(rank), "2", store, *where] for rank in range(2)], 300)
