"""Noise on a teacher's logits on a device: the CPU's numbers, the oracle's values and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless import reference  # noqa: E402
from logitless.backends import registry  # noqa: E402
from logitless.backends.row_kernels.noise import RowNoise  # noqa: E402
from logitless.backends.row_kernels.rows import STATE, Rows  # noqa: E402
from logitless.inputs.records import changed  # noqa: E402
from logitless.ops.head.planner.cost import Strategy  # noqa: E402
from tests.support import mask_cases, plans  # noqa: E402
from tests.support.device.devices import Device  # noqa: E402
from tests.support.teacher_cases import ANYONE, CHAINS, EXTRAS, KINDS, Call, N, V  # noqa: E402
from tests.support.tolerances import assert_bitwise_equal, assert_values  # noqa: E402

SEED, STEP = (1 << 64) - 3, (1 << 34) - 1
ROW_IDS = torch.arange(N) * 1_000_003 - 5
# rows 4 and 8 have none
SIZES = torch.tensor([0.5, 1.0, 1.5, 0.7, 0.0, 2.0, 0.3, 1.0, 0.0], dtype=torch.float64)
OF_ORACLE: dict[str, Any] = {
    "sizes": SIZES.numpy(), "seed": SEED, "step": STEP, "row_ids": ROW_IDS.numpy()
}  # fmt: skip


def noise_there(device: Device) -> dict[str, Any]:
    sizes, ids = device.put(SIZES, ROW_IDS)
    return {"teacher_noise": sizes, "seed": SEED, "step": STEP, "row_ids": ids}


def there(call: Call, device: Device) -> Call:
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight", "mask", "g"):
        setattr(call, name, device.put(getattr(call, name))[0])
    for options in (call.student, call.teacher):
        for name, value in options.items():
            options[name] = device.put(value)[0] if torch.is_tensor(value) else value
    return call


def added(device: str, backend: str, starts: list[int], n: int) -> list[np.ndarray]:
    """What the kernels add to a logit of 0 in n rows: the maximum of a row of one token."""
    made = registry.get(backend)
    ids = torch.arange(n, device=device) * 7919 - 3
    sizes = torch.ones(n, dtype=torch.float64, device=device)
    found = []
    for start in starts:
        rows = Rows(made, n)
        teacher = changed(rows, noise=RowNoise(SEED, STEP, ids, sizes, start))
        zeros = torch.zeros(n, 1, device=device)
        state = torch.empty(n, STATE, dtype=torch.float64, device=device)
        assert made.divergence is not None
        made.divergence(rows, teacher).forward(zeros, zeros, state, start=0, first=True)
        found.append(state[:, STATE // 2].cpu().numpy())
        if made.sets is None:
            continue
        offsets = torch.arange(n + 1, device=device)
        columns = torch.zeros(n, dtype=torch.int32, device=device)
        values = zeros[:, 0].contiguous()
        made.sets.pair_forward(rows, teacher, offsets, columns, values, values, state=state)
        found.append(state[:, STATE // 2].cpu().numpy())
    return found


def test_the_numbers_are_those_of_the_cpu(device: Device) -> None:
    """Of the same words, in float32: within 2e-6 of those in float64, of rows and of sets."""
    starts = [0, 15, 17, 40, 63, 64, 151_001]
    n = 16 if device.interpreted else 1000
    ours, cpu = added(device.name, device.backend, starts, n), added("cpu", "cpu", starts, n)
    ids = np.arange(n) * 7919 - 3
    truth = [
        np.array([reference.teacher_noise(SEED, STEP, int(i), np.array([start]))[0] for i in ids])
        for start in starts
    ]
    for i, right in enumerate(truth):
        for mine in (*ours[2 * i : 2 * i + 2], *cpu[2 * i : 2 * i + 2]):
            np.testing.assert_allclose(mine, right, rtol=1e-6, atol=2e-6)


def added_to_rows(device: Device, noise: RowNoise, width: int, sets: bool) -> np.ndarray:
    """What the kernels add to `width` logits of 0: log q and the teacher's normaliser. Where the
    student has no mass, q is the gradient of forward_kl. One column more has all of that."""
    made, n = registry.get(device.backend), len(noise.sizes)
    row_scale = (0.5 + torch.arange(n, dtype=torch.float64)).to(device.name)
    rows = Rows(made, n)
    teacher = changed(rows, noise=noise, row_scale=row_scale)
    others = torch.zeros(n, width + 1, device=device.name)
    own = torch.full_like(others, -math.inf)
    own[:, width] = 0
    state = torch.empty(n, STATE, dtype=torch.float64, device=device.name)
    out, ones = torch.empty_like(own), torch.ones(n, dtype=torch.float64, device=device.name)
    how: dict[str, Any] = {
        "kind": "forward_kl", "beta": 0.5, "sums": None, "g_divergence": ones, "g_entropy": None
    }  # fmt: skip
    if sets:
        assert made.sets is not None
        offsets = torch.arange(n + 1, device=device.name) * (width + 1)
        columns = torch.arange(width + 1, dtype=torch.int32, device=device.name).repeat(n)
        entries = offsets, columns, own.view(-1), others.view(-1)
        made.sets.pair_forward(rows, teacher, *entries, state=state)
        made.sets.pair_gradient(rows, teacher, *entries, state=state, out=out.view(-1), **how)
    else:
        assert made.divergence is not None
        kernels = made.divergence(rows, teacher)
        kernels.forward(own, others, state, start=0, first=True)
        kernels.gradient(own, others, state, out, start=0, **how)
    m, total = state[:, STATE // 2], state[:, STATE // 2 + 1]
    found = (-out[:, :width].double()).log() + (m * row_scale + total.log())[:, None]
    return np.asarray(found.cpu())


@pytest.mark.parametrize("sets", [False, True], ids=["rows", "sets"])
@pytest.mark.parametrize("start", [0, 15, 48, 63, 151_001])
def test_every_column_has_its_own(device: Device, start: int, sets: bool) -> None:
    """Of rows longer than a program's columns, wherever their groups of tokens start; within the
    rounding of the float32 logarithms that they are read by. A row of size 0 has none."""
    sizes, ids = device.put(SIZES[2:5].contiguous(), ROW_IDS[2:5].contiguous())
    noise = RowNoise(SEED, STEP, ids, sizes, start)
    # with the last one 5 columns less than two programs have: from the middle of a group on, three
    width = 500 if sets else 4090
    found = added_to_rows(device, noise, width, sets)
    np.testing.assert_allclose(found, noise.of_columns(width).cpu(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("sets", [None, "mixed"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_heads_are_the_oracle(device: Device, kind: str, chain: str, sets: str | None) -> None:
    """Under a temperature per token, in several tiles, and over sets."""
    host, call = (Call(torch.float32, kind, chain) for _ in range(2))
    call = there(call, device)
    ids = None if sets is None else mask_cases.sets(sets, 3, ANYONE, V)
    given: dict[str, Any] = {"extras": EXTRAS, **call.options, **noise_there(device)}
    if ids is not None:
        given["sampling_mask"] = ll.SamplingMask.from_lists(ids)
    leaves = [x.clone().requires_grad_() for x in call.heads[:2]]
    # of the interpreter each row of d_weight takes milliseconds
    frozen = device.interpreted and ids is not None
    leaves[1].requires_grad_(not frozen)
    out = ll.linear_divergence(
        *leaves, *call.heads[2:], call.mask, backend=device.backend, memory_budget="1MiB", **given
    )  # fmt: skip
    with torch.no_grad():
        plain = ll.linear_divergence(*call.heads, call.mask, backend="torch", **given)
    of_oracle = {"noise": OF_ORACLE, "sets": ids}
    truth = host.oracle(reference.linear_divergence, *host.heads, **of_oracle)
    for name, value in {**out._asdict(), **out.extras}.items():
        if name != "extras":
            other = {**plain._asdict(), **plain.extras}[name]
            assert_values(value.detach().cpu(), truth[name], torch.float32, plain=other.cpu())
    right = host.oracle(
        reference.linear_divergence_backward, *host.heads, **of_oracle, **host.upstream()
    )
    leaves = leaves[:1] if frozen else leaves
    for x, y in zip(torch.autograd.grad(call.loss(out), leaves), right, strict=False):
        device.assert_gradients(x, y, scale=10 * max(1.0, float(np.abs(y).max())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_given_logits(device: Device, dtype: Any, kind: str) -> None:
    host, call = Call(dtype, kind, "both"), there(Call(dtype, kind, "both"), device)
    given = {"extras": EXTRAS, **call.options, **noise_there(device)}
    one, other = host.hidden @ host.weight.T, host.teacher_hidden @ host.teacher_weight.T
    logits, others = device.put(one, other)
    logits.requires_grad_()
    out = ll.divergence(logits, others, call.mask, backend=device.backend, **given)
    plain = ll.divergence(logits.detach(), others, call.mask, backend="torch", **given)
    truth = host.oracle(reference.divergence, one, other, noise=OF_ORACLE)
    assert_values(
        out.divergence.detach().cpu(), truth["divergence"], torch.float32,
        plain=plain.divergence.cpu(),
    )  # fmt: skip
    (ours,) = torch.autograd.grad(call.loss(out), logits)
    right, _ = host.oracle(
        reference.divergence_backward, one, other, noise=OF_ORACLE, **host.upstream()
    )
    device.assert_gradients(ours, right, scale=4.0 * max(1.0, float(np.abs(right).max())))


@pytest.mark.parametrize("kind", KINDS)
def test_how_it_is_split_is_not_seen(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in any order and company, bit for bit; tiles of the vocabulary, to rounding."""
    g = torch.Generator().manual_seed(1)
    logits, others = device.put(*torch.randn(2, N, 5300, generator=g))
    options: dict[str, Any] = {"kind": kind, "backend": device.backend, **noise_there(device)}
    if kind == "jsd":
        options["beta"] = 0.3
    whole = ll.divergence(logits, others, **options)
    for index in (torch.tensor([5, 0, 8]), torch.tensor([6])):
        (index,) = device.put(index)
        some = {name: options[name][index] for name in ("teacher_noise", "row_ids")}
        part = ll.divergence(logits[index], others[index], **{**options, **some})
        for a, b in zip(whole[:3], part[:3], strict=True):
            assert_bitwise_equal(a[index], b)
    quiet = {name: x for name, x in options.items() if name in ("kind", "beta", "backend")}
    plain, (none,) = ll.divergence(logits, others, **quiet), device.put(SIZES == 0)
    assert (plain.divergence != whole.divergence)[~none].all()
    assert_values(plain.divergence[none].cpu(), whole.divergence[none].cpu(), torch.float32)
    found = []
    call = there(Call(torch.float32, kind), device)
    for tiling in (Strategy(N, 5000, 5000), Strategy(4, 1024 + 256, 0)):
        plans.force(monkeypatch, tiling)
        leaves = [x.clone().requires_grad_() for x in call.heads[:2]]
        given = {**call.options, **noise_there(device)}
        out = ll.linear_divergence(
            *leaves, *call.heads[2:], call.mask, backend=device.backend, **given
        )
        found.append((*out[:3], *torch.autograd.grad(call.loss(out), leaves)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_the_vocabulary(device: Device, kind: str) -> None:
    """The gradient of a rank's columns is that of these columns of one rank, to the bit: their
    tokens have the same noise."""
    made, n, cut = registry.get(device.backend), 5, 1111
    assert made.divergence is not None
    g = torch.Generator().manual_seed(4)
    tiles = device.put(*torch.randn(2, n, 2400, generator=g))
    sizes, ids = device.put(SIZES[:n].contiguous(), ROW_IDS[:n].contiguous())
    ones, state = torch.ones(n, dtype=torch.float64, device=device.name), None
    gradients = []
    for first in (0, cut):
        rows = Rows(made, n)
        teacher = changed(rows, noise=RowNoise(SEED, STEP, ids, sizes, first))
        kernels = made.divergence(rows, teacher)
        own, other = (x[:, first:].contiguous() for x in tiles)
        if state is None:
            state = torch.empty(n, STATE, dtype=torch.float64, device=device.name)
            sums = torch.empty(n, 2, dtype=torch.float64, device=device.name)
            kernels.forward(own, other, state, start=0, first=True)
            kernels.mix(own, other, state, sums, beta=0.3, start=0, first=True)
        out = torch.empty_like(own)
        kernels.gradient(
            own, other, state, out, start=0, kind=kind, beta=0.3, sums=sums, g_divergence=ones,
            g_entropy=None,
        )  # fmt: skip
        gradients.append(out)
    assert_bitwise_equal(gradients[0][:, cut:].contiguous(), gradients[1])


def test_a_size_that_is_none_is_named(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU before anything runs, on a device by its row; outside the mask it is nothing."""
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    logits, ids = device.put(torch.zeros(3, 7), torch.arange(3))
    for bad in (math.nan, math.inf, -1.0):
        sizes, mask = device.put(torch.tensor([1.0, bad, 1.0]), torch.tensor([True, False, True]))
        noise = {"teacher_noise": sizes, "seed": 1, "row_ids": ids, "backend": device.backend}
        with pytest.raises(ValueError, match=r"row 1.*teacher_noise|teacher_noise.*row 1"):
            ll.divergence(logits, logits, **noise)
        assert ll.divergence(logits, logits, mask, **noise).divergence[1] == 0
