"""Normal noise on a teacher's logits: its numbers, and that its arguments alone move them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless import _core, reference  # noqa: E402
from logitless.backends.row_kernels.noise import RowNoise  # noqa: E402
from tests.support import mask_cases  # noqa: E402
from tests.support.teacher_cases import (  # noqa: E402
    ANYONE,
    CHAINS,
    EXTRAS,
    KINDS,
    Call,
    N,
    V,
    beta_of,
    named,
)
from tests.support.tolerances import (  # noqa: E402
    assert_bitwise_equal,
    assert_gradients,
    assert_values,
)

SEED, STEP = (1 << 64) - 3, (1 << 34) - 1
ROW_IDS = torch.arange(N) * 1_000_003 - 5
# rows 4 and 8 have none
SIZES = torch.tensor([0.5, 1.0, 1.5, 0.7, 0.0, 2.0, 0.3, 1.0, 0.0], dtype=torch.float64)
NOISE: dict[str, Any] = {
    "teacher_noise": SIZES, "seed": SEED, "step": STEP, "row_ids": ROW_IDS
}  # fmt: skip
OF_ORACLE: dict[str, Any] = {
    "sizes": SIZES.numpy(), "seed": SEED, "step": STEP, "row_ids": ROW_IDS.numpy()
}  # fmt: skip


def kernels_noise(n_columns: int, start: int, dtype: Any, row_id: int = 7) -> np.ndarray:
    """What the kernels add to logits of 0, read from the gradient of forward_kl: p - q."""
    zeros = np.zeros((1, n_columns), dtype)
    own, teacher = _core.rows.Rows(1), _core.rows.Rows(1)
    noise = _core.divergence.Noise(
        np.array([row_id]), np.array([1.0]), seed=SEED, step=STEP, start=start
    )
    state, gradient = np.zeros((1, 8)), np.zeros_like(zeros)
    _core.divergence.forward(own, teacher, zeros, zeros, state, noise=noise)
    _core.divergence.gradient(
        own, teacher, zeros, zeros, state, gradient, kind="forward_kl",
        g_divergence=np.ones(1), noise=noise,
    )  # fmt: skip
    q = 1 / n_columns - gradient[0].astype(np.float64)
    # log q and the teacher's normaliser, whose maximum and sum are its side of the state
    return np.asarray(np.log(q) + state[0, 4] + np.log(state[0, 5]), np.float64)


@pytest.mark.parametrize("start", [0, 1, 63, 64, 2047, 151_001])
def test_the_kernels_have_the_oracles_numbers(start: int) -> None:
    truth = reference.teacher_noise(SEED, STEP, 7, np.arange(start, start + 300))
    np.testing.assert_allclose(kernels_noise(300, start, np.float64), truth, rtol=0, atol=1e-11)
    np.testing.assert_allclose(kernels_noise(300, start, np.float32), truth, rtol=0, atol=3e-4)
    given = RowNoise(SEED, STEP, torch.tensor([7]), torch.ones(1, dtype=torch.float64), start)
    np.testing.assert_allclose(given.of_columns(300)[0], truth, rtol=0, atol=1e-13)


def test_the_numbers_are_normal_and_of_their_arguments_alone() -> None:
    """200,000 of them: moments within five standard errors, and each tenth of them a tenth."""
    many = np.concatenate(
        [reference.teacher_noise(3, 1, row, np.arange(20_000)) for row in range(10)]
    )
    n = len(many)
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((many**power).mean() - expected) < 5 * math.sqrt(spread / n)
    ordered = np.sort(many)
    normal = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in ordered[:: n // 2000]])
    assert np.abs(normal - np.arange(len(normal)) / len(normal)).max() < 1.95 / math.sqrt(n) + 1e-3
    # neighbours, the two of a pair, rows and steps have nothing to do with each other
    others = [
        many[1:] * many[:-1], many[16:] * many[:-16], many[20_000:] * many[:-20_000],
        many[:20_000] * reference.teacher_noise(3, 2, 0, np.arange(20_000)),
        many[:20_000] * reference.teacher_noise(4, 1, 0, np.arange(20_000)),
    ]  # fmt: skip
    assert all(abs(x.mean()) < 5 / math.sqrt(len(x)) for x in others)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_given_logits_are_the_oracle(dtype: Any, kind: str, chain: str, backend: str) -> None:
    call = Call(dtype, kind, chain)
    logits = (call.hidden @ call.weight.T).requires_grad_()
    others = call.teacher_hidden @ call.teacher_weight.T
    options = {**call.options, **NOISE, "extras": EXTRAS}
    out = ll.divergence(logits, others, call.mask, backend=backend, **options)
    truth = call.oracle(reference.divergence, logits, others, noise=OF_ORACLE)
    plain = None
    if dtype != torch.float64:
        given = logits.detach(), others, call.mask
        plain = named(ll.divergence(*given, backend="torch", **options))
    for name, value in named(out).items():
        assert_values(value, truth[name], dtype, plain=None if plain is None else plain[name])
    (ours,) = torch.autograd.grad(call.loss(out), logits)
    right, _ = call.oracle(
        reference.divergence_backward, logits, others, noise=OF_ORACLE, **call.upstream()
    )
    assert_gradients(ours, right, dtype, scale=4.0 * max(1.0, float(np.abs(right).max())))


@pytest.mark.parametrize("sets", [None, "mixed", "large"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_heads_are_the_oracle(kind: str, sets: str | None) -> None:
    """Also beside a sampling mask, whose tokens have the noise that they have without."""
    call = Call(torch.float64, kind, "both")
    ids = None if sets is None else mask_cases.sets(sets, 3, ANYONE, V)
    given = None if ids is None else ll.SamplingMask.from_lists(ids)
    for backend in ("auto", "torch"):
        hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
        out = ll.linear_divergence(
            hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS, sampling_mask=given,
            backend=backend, **call.options, **NOISE,
        )  # fmt: skip
        of_oracle = {"noise": OF_ORACLE, "sets": ids}
        truth = call.oracle(reference.linear_divergence, *call.heads, **of_oracle)
        for name, value in named(out).items():
            np.testing.assert_allclose(value.detach(), truth[name], rtol=1e-9, atol=1e-11)
        right = call.oracle(
            reference.linear_divergence_backward, *call.heads, **of_oracle, **call.upstream()
        )
        ours = torch.autograd.grad(call.loss(out), [hidden, weight])
        for x, y in zip(ours, right, strict=False):
            assert_gradients(x, y, torch.float64, scale=10 * max(1.0, float(np.abs(y).max())))


def outcome(call: Call, **changed: Any) -> list[Any]:
    hidden, weight = (x.clone().requires_grad_() for x in call.heads[:2])
    out = ll.linear_divergence(
        hidden, weight, *call.heads[2:], call.mask, extras=EXTRAS,
        **{**call.options, **NOISE, **changed},
    )  # fmt: skip
    gradients = torch.autograd.grad(call.loss(out), [hidden, weight])
    return [x.detach() for x in (*named(out).values(), *gradients)]


@pytest.mark.parametrize("kind", KINDS)
def test_how_it_is_split_is_not_seen(kind: str) -> None:
    """Budgets, the order of rows and micro-batches; and threads, to the bit where no product is
    the vendor's."""
    call, before = Call(torch.float64, kind, "both"), torch.get_num_threads()
    first = outcome(call)
    for budget in ("1MiB", "600KiB"):
        for a, b in zip(first, outcome(call, memory_budget=budget), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    logits, others = torch.randn(2, N, 300, generator=torch.Generator().manual_seed(1))
    options = {"kind": kind, "beta": beta_of(kind), "extras": EXTRAS, "seed": 5}
    whole = ll.divergence(logits, others, teacher_noise=SIZES, row_ids=ROW_IDS, **options)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for a, b in zip(first, outcome(call), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
            again = ll.divergence(logits, others, teacher_noise=SIZES, row_ids=ROW_IDS, **options)
            for a, b in zip(named(whole).values(), named(again).values(), strict=True):
                assert_bitwise_equal(a, b)
    finally:
        torch.set_num_threads(before)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    for index in (order, order[:2], torch.tensor([6])):
        part = ll.divergence(
            logits[index], others[index], teacher_noise=SIZES[index], row_ids=ROW_IDS[index],
            **options,
        )  # fmt: skip
        for a, b in zip(named(whole).values(), named(part).values(), strict=True):
            assert_bitwise_equal(a[index], b)
    ids = {"row_ids": ROW_IDS.view(3, 3), "teacher_noise": SIZES.view(3, 3)}
    folded = ll.divergence(logits.view(3, 3, 300), others.view(3, 3, 300), **ids, **options)
    assert_bitwise_equal(folded.divergence.view(-1), whole.divergence)


def test_rows_without_noise_are_as_ever_and_seeds_differ() -> None:
    logits, others = torch.randn(2, N, 300, generator=torch.Generator().manual_seed(1))
    plain = ll.divergence(logits, others)
    noisy = ll.divergence(logits, others, teacher_noise=SIZES, seed=1, row_ids=ROW_IDS)
    quiet = SIZES == 0
    assert quiet.any() and not quiet.all()
    assert_bitwise_equal(plain.divergence[quiet], noisy.divergence[quiet])
    assert (plain.divergence != noisy.divergence)[~quiet].all()
    assert_bitwise_equal(plain.entropy, noisy.entropy)
    for changed in ({"seed": 2}, {"step": 1}, {"row_ids": ROW_IDS + 1}):
        options = {"seed": 1, "row_ids": ROW_IDS, **changed}
        other = ll.divergence(logits, others, teacher_noise=SIZES, **options)
        assert (other.divergence != noisy.divergence)[~quiet].all()
    none = ll.divergence(logits, others, teacher_noise=0.0, seed=1, row_ids=ROW_IDS)
    assert_bitwise_equal(plain.divergence, none.divergence)


def test_masked_rows_may_hold_anything() -> None:
    call = Call(torch.float32, "jsd")
    want = outcome(call)
    sizes = torch.where(call.mask, SIZES, math.nan)
    for a, b in zip(want, outcome(call, teacher_noise=sizes), strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("sets", [None, "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_is_torch(kind: str, sets: str | None) -> None:
    call = Call(torch.float32, kind, "both")
    options = {**call.options, **NOISE}
    if sets is not None:
        options["sampling_mask"] = mask_cases.mask_of(sets, 3, ANYONE, V)
    arrays = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    heads = [x.numpy() for x in call.heads]
    ours = ll.linear_divergence(*heads, call.mask.numpy(), extras=EXTRAS, **arrays)
    want = ll.linear_divergence(*call.heads, call.mask, extras=EXTRAS, **options)
    for name, value in named(ours).items():
        np.testing.assert_allclose(value, named(want)[name].numpy(), rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_torch_compile_is_the_same(kind: str) -> None:
    call = Call(torch.float32, kind)
    leaves = [x.clone().requires_grad_() for x in call.heads[:2]]
    torch._dynamo.reset()

    def loss(hidden: Any, weight: Any, step: int) -> Any:
        options = {**call.options, **NOISE, "step": step}
        out = ll.linear_divergence(hidden, weight, *call.heads[2:], call.mask, **options)
        return call.loss(out)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in (1, 2):
        found = torch.autograd.grad(compiled(*leaves, step), leaves)
        for ours, right in zip(found, outcome(call, step=step)[5:], strict=True):
            assert_bitwise_equal(ours, right)


def test_what_does_not_fit_is_refused_by_name() -> None:
    logits, others = torch.randn(2, 3, 8)
    ids = torch.arange(3)
    refusals: dict[str, dict[str, Any]] = {
        "teacher_noise needs seed, got None": {"row_ids": ids},
        "teacher_noise needs row_ids, got None": {"seed": 1},
        "teacher_noise must be finite and >= 0, got -1.0": {"teacher_noise": -1.0},
        "teacher_noise must be finite and >= 0, got nan at row 1": {
            "teacher_noise": torch.tensor([0.0, math.nan, 1.0])
        },
        r"teacher_noise must be a number or the shape of the tokens = \[3\], got \[2\]": {
            "teacher_noise": torch.ones(2)
        },
        r"row_ids must be the shape of the tokens = \[3\], got \[2\]": {"row_ids": ids[:2]},
        r"step must be an int >= 0 and below 2\^34": {"step": 1 << 34},
    }
    for message, changed in refusals.items():
        options: dict[str, Any] = {"teacher_noise": 1.0}
        if not message.startswith("teacher_noise needs"):
            options |= {"seed": 1, "row_ids": ids}
        for backend in ("auto", "torch"):
            with pytest.raises(ValueError, match=f"divergence: {message}"):
                ll.divergence(logits, others, backend=backend, **{**options, **changed})
    with pytest.raises(TypeError, match="row_ids must be int64"):
        ll.divergence(logits, others, teacher_noise=1.0, seed=1, row_ids=ids.int())
