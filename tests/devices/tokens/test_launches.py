"""How many kernels the public functions of tokens launch on a device: as many as the predicted
times have, so that none comes in unseen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from benchmarks.gpu.predict.model import TOKENS
from logitless.backends.token_kernels.cuda import CudaTokens
from logitless.backends.token_kernels.torch_tokens import TorchTokens
from tests.support.device.devices import Device
from tests.support.device.launches import Launches
from tests.support.device.waits import as_on_device, nothing_is_flagged
from tests.support.paths import ROOT

# More than a block that sorts ids, fewer than are merged twice.
N = 5000
# Beside what is counted here: the copy of the flag that each call queues, and in a million tokens
# another merge of sorted ids.
FLAG, MERGE = 1, 1
# Of Triton's kernels, where they are in place of torch's operations.
TRITON = {"statistics of a batch": 259, "covariance of a batch": 458}
MORE = {"ids of tokens": 0, "log-probs of sequences": 0, "statistics of a batch": FLAG + MERGE}


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Not here, where a fill is a launch."""


def data(device: Device) -> dict[str, Tensor]:
    torch.manual_seed(1)
    logp = -torch.rand(N)
    given = {
        "logp": logp, "old_logp": logp + 0.1 * torch.randn(N), "advantages": torch.randn(N),
        "mask": torch.rand(N) < 0.8, "ids": torch.randperm(N),
        "cu_seqlens": torch.arange(0, N + 1, 100, dtype=torch.int32),
        "sequences": torch.arange(N) // 100, "positions": torch.arange(N) % 100,
    }  # fmt: skip
    return dict(zip(given, device.put(*given.values()), strict=True))


def loss(x: dict[str, Tensor]) -> None:
    leaf = x["logp"].requires_grad_()
    out = ll.policy_loss(leaf, x["old_logp"], x["advantages"], x["mask"], ll.presets["ppo"])
    torch.autograd.grad(out.loss, leaf)


def batch(x: dict[str, Tensor]) -> None:
    tokens = (x["old_logp"], x["advantages"], x["mask"])
    ll.batch_stats(*tokens, ll.presets["kl_cov"], token_ids=x["ids"], seed=1, step=2)


# As in the table of the predicted times.
CALLS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "loss of tokens, ppo": loss,
    "weights of a rollout, tis": lambda x: ll.rollout_weights(
        x["old_logp"], x["logp"], x["mask"], ll.corrections["tis"]
    ),
    "ids of tokens": lambda x: ll.token_ids(x["sequences"], x["positions"], 100),
    "log-probs of sequences": lambda x: ll.sequence_logp(
        x["logp"], x["mask"], cu_seqlens=x["cu_seqlens"]
    ),
    "statistics of a batch": batch,
    "covariance of a batch": lambda x: ll.covariance(x["old_logp"], x["advantages"], x["mask"]),
}


def launched(device: Device, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Launches:
    given = data(device)
    as_on_device(device, monkeypatch)
    CALLS[name](given)
    with monkeypatch.context() as patch:
        nothing_is_flagged(patch)
        with Launches(folder / "log") as found:
            CALLS[name](given)
    return found


def promised() -> dict[str, tuple[int, int]]:
    """Function -> launches of the compiled kernels and of torch's operations, in the docs."""
    text = (ROOT / "docs/gpu.md").read_text()
    section = text.partition("## What a call of tokens launches")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`[^|]* \| (\d+) \| \d+ \| (\d+) \| ", section, re.M)
    return {name: (int(compiled), int(torch_ops)) for name, compiled, torch_ops in rows}


def test_every_call_is_counted() -> None:
    """As often as the docs say."""
    assert CALLS.keys() == TOKENS.keys()
    counted = {function: launches for function, (_, launches, _) in TOKENS.values()}
    assert {name: launches for name, (launches, _) in promised().items()} == counted


@pytest.mark.parametrize("name", CALLS)
def test_launches(
    device: Device, kernels: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    if device.name != "cpu":
        pytest.skip("stand-ins count kernels; on a GPU benchmarks.gpu.contact does")
    found = launched(device, name, monkeypatch, tmp_path)
    function, (_, launches, _) = TOKENS[name]
    counted = sum(found.seen.values())
    if isinstance(kernels, CudaTokens):
        assert counted + MORE.get(name, FLAG) == launches
    else:
        known = promised()[function][1]
        if type(kernels) is not TorchTokens:
            known = TRITON.get(name, known)
        # an older torch may make another op of one
        assert 0.9 < (counted + min(MORE.get(name, FLAG), FLAG)) / known <= 1
    # and a mode that sees none would count none
    assert found.moved > N
