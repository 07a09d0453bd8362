"""The Triton row kernels against the oracle, in Triton's interpreter.

Not collected by itself: the interpreter must be on before triton is imported, so `test_kernels.py`
runs this file in a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from logitless import reference
from logitless.kernels import finish
from logitless.kernels.rows import TritonRows
from tests.interpreter.rounding import round_to_nearest
from tests.support import cases
from tests.support.device.interpreter import patch_once
from tests.support.row_outputs import REALS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

patch_once()
round_to_nearest()

# The interpreter computes with NumPy, which warns of what the kernels do on purpose: 0 / 0 in bad
# rows and in lanes past the end of an array.
# And Triton 3.6 makes scalars of arrays, which NumPy 2.3 warns of (2.4 refuses it).
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Pieces are 2048 float32 or 4096 16-bit columns.
SHAPES = (
    (0, 127),  # nothing to do
    (1, 1),  # one token, one outcome
    (33, 127),  # a ragged tail shorter than a piece
    (3, 1025),
    (2, 4096),  # whole pieces
    (3, 4097),  # a piece of one column
    (2, 9001),  # several pieces, ragged
)
NO_ERROR = 2**63 - 1
INF, NAN = float("inf"), float("nan")


def make_rows(targets: Tensor, mask: Tensor | None = None, **chain: Any) -> TritonRows:
    """As the ops do: without a softcap all scaling is `scale`, applied after the maximum."""
    temperature, softcap = chain.get("temperature", 1.0), chain.get("softcap")
    logit_scale = chain.get("logit_scale", 1.0)
    numerator = 1.0 if softcap else logit_scale
    per_row = isinstance(temperature, Tensor)
    return TritonRows(
        targets.numel(),
        targets=targets,
        mask=mask,
        row_scale=numerator / temperature.double() if per_row else None,
        scale=1.0 if per_row else numerator / temperature,
        bias=chain.get("bias"),
        pre=logit_scale if softcap else 1.0,
        softcap=softcap or 0.0,
    )


def empty_state(n: int) -> Tensor:
    return torch.full((n, 8), NAN, dtype=torch.float64)


def finished(
    rows: TritonRows, state: Tensor, vocab: int, row_ids: Tensor | None = None
) -> tuple[dict[str, Tensor], int]:
    out = {name: torch.full((rows.n,), NAN) for name in REALS}
    out["argmax"] = torch.full((rows.n,), 85)
    error = torch.tensor([NO_ERROR])
    rows.finalize(state, vocab, error, row_ids=row_ids, **out)
    return out, int(error)


def forward(
    z: Tensor, targets: Tensor, mask: Tensor | None = None, **chain: Any
) -> tuple[TritonRows, Tensor, dict[str, Tensor], int]:
    rows, state = make_rows(targets, mask, **chain), empty_state(targets.numel())
    rows.forward(z, state, extras=True)
    return rows, state, *finished(rows, state, z.shape[-1])


def assert_stats(out: dict[str, Tensor], truth: dict[str, Any], slack: Any = 0.0) -> None:
    """`slack`: what the chain's own roundings may add."""
    for name in REALS:
        # Each extra is a difference of sums of squares of at most (log V)^2.
        scale = 1 if name in ("logp", "entropy", "lse") else 30
        assert_values(out[name] / scale, truth[name] / scale, "float32", plain=truth[name] + slack)


def against_the_oracle(
    z: Tensor, targets: Tensor, mask: Tensor | None, chain: dict[str, Any], upstream: Any
) -> None:
    exact = cases.numpy_chain(chain)
    if mask is not None:
        exact["mask"] = mask.numpy()
    truth = reference.token_stats(cases.to_numpy(z), targets.numpy(), **exact)
    rows, state, out, error = forward(z, targets, mask, **chain)
    # A chain rounds y at its own size, once a step; plain float32 code would as well.
    size = max(chain.get("softcap") or 0.0, 16.0 if chain else 0.0)
    assert_stats(out, truth, slack=2 * size * 2.0**-23)
    active = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    assert out["argmax"].tolist() == np.where(active, truth["argmax"], -1).tolist()
    assert error == NO_ERROR
    assert (out["logp"] <= 0).all()

    g = dict(zip(("g_logp", "g_entropy", "g_lse"), upstream, strict=True))
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), targets.numpy(), **{k: v.numpy() for k, v in g.items()}, **exact
    )
    silent = ~active | torch.stack(list(upstream)).eq(0).all(0)
    poisoned = z.clone()
    poisoned[silent] = NAN
    gradient = torch.full_like(z, NAN)
    rows.gradient(poisoned, state, gradient, **g)
    assert_gradients(gradient, expected, z.dtype, scale=1 + 4 * size)
    assert (gradient[silent] == 0).all()
    rows.gradient(poisoned, state, poisoned, **g)
    if z.numel():
        assert_bitwise_equal(poisoned, gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"N{s[0]}-V{s[1]}")
def test_every_shape(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, vocab = shape
    z, t = cases.logits(1, n, vocab, dtype), cases.targets(1, n, vocab)
    against_the_oracle(z, t, None, {}, cases.upstream(1, n))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", cases.CHAINS)
def test_every_link_of_the_chain_with_a_mask(dtype: torch.dtype, kind: str) -> None:
    n, vocab = 6, 4100
    z, t, mask = cases.logits(2, n, vocab, dtype), cases.targets(2, n, vocab), cases.mask(3, n)
    assert mask.any() and not mask.all()
    z[~mask] = NAN
    t[~mask] = -7
    against_the_oracle(z, t, mask, cases.chain(kind, 2, n, vocab), cases.upstream(2, n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cuts", [[4096], [2048, 6144], [1, 100, 5000]], ids=str)
def test_vocabulary_tiles(dtype: torch.dtype, cuts: list[int]) -> None:
    n, vocab = 3, 9001
    z, t = cases.logits(4, n, vocab, dtype), cases.targets(4, n, vocab)
    chain = cases.chain("all", 4, n, vocab)
    rows, state = make_rows(t, **chain), empty_state(n)
    edges = [0, *cuts, vocab]
    tiles = list(pairwise(edges))
    for start, stop in tiles:
        rows.forward(z[:, start:stop], state, start=start, first=start == 0, extras=True)
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **cases.numpy_chain(chain))
    out, error = finished(rows, state, vocab)
    assert_stats(out, truth, slack=32 * 2.0**-23)
    assert out["argmax"].tolist() == truth["argmax"].tolist()
    assert error == NO_ERROR
    g = dict(zip(("g_logp", "g_entropy", "g_lse"), cases.upstream(5, n), strict=True))
    whole, parts = torch.full_like(z, NAN), torch.full_like(z, NAN)
    rows.gradient(z, state, whole, **g)
    for start, stop in tiles:
        rows.gradient(z[:, start:stop], state, parts[:, start:stop], start=start, **g)
    assert_bitwise_equal(whole, parts)


def test_strided_batches_and_padded_rows() -> None:
    """[B, T, V] views with strides of their own; what lies between the rows is NaN and stays so."""
    whole = torch.full((3, 5, 2600), NAN)
    view = whole[:, :-1, :2500]
    view.copy_(cases.logits(6, 12, 2500, torch.float32).view(3, 4, 2500))
    flat, t = view.reshape(12, 2500), cases.targets(6, 12, 2500)
    rows, state, _, _ = forward(view, t)
    _, expected, _, _ = forward(flat, t)
    assert_bitwise_equal(state, expected)
    g = dict(zip(("g_logp", "g_entropy", "g_lse"), cases.upstream(6, 12), strict=True))
    gradient, into_flat = torch.full_like(flat, NAN), torch.full_like(flat, NAN)
    rows.gradient(flat, state, gradient, **g)
    rows.gradient(view, state, into_flat, **g)
    assert_bitwise_equal(into_flat, gradient)
    rows.gradient(flat, state, view, **g)
    assert_bitwise_equal(view.reshape(12, 2500), gradient)
    assert whole[:, -1].isnan().all()
    assert whole[:, :, 2500:].isnan().all()


def test_a_row_is_the_same_alone() -> None:
    z, t = cases.logits(7, 33, 5000, torch.bfloat16), cases.targets(7, 33, 5000)
    _, state, _, _ = forward(z, t)
    for row in (0, 7, 32):
        _, alone, _, _ = forward(z[row : row + 1], t[row : row + 1])
        assert_bitwise_equal(alone, state[row : row + 1])


BAD_ROWS = {  # the kind of error, a row of three logits, its target
    "plus-inf": (1, [0.0, INF, 1.0], 0),
    "nan-and-plus-inf": (1, [NAN, INF, 1.0], 0),
    "nan": (2, [0.0, NAN, 1.0], 0),
    "nan-among-nothing": (2, [-INF, NAN, -INF], 0),
    "nothing-finite": (3, [-INF, -INF, -INF], 0),
    "target-too-large": (4, [0.0, 1.0, 2.0], 3),
    "target-negative": (4, [0.0, 1.0, 2.0], -1),
}


@pytest.mark.parametrize("vocab", [3, 2500])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_nan_and_named(name: str, vocab: int) -> None:
    kind, values, target = BAD_ROWS[name]
    z = torch.full((4, vocab), -INF)
    z[:, -3:] = torch.tensor([0.0, 1.0, 2.0])
    # The worse row comes later; the flag keeps the first. A masked one is not looked at.
    z[1:, -3:] = torch.tensor(values)
    target = target + vocab - 3 if target >= 0 else target
    t, mask = torch.tensor([0, target, target, target]), torch.tensor([True, False, True, True])
    rows, state, out, error = forward(z, t, mask)
    assert error == 2 * 8 + kind
    for outputs in (out[name] for name in REALS):
        assert outputs[2:].isnan().all()
        assert outputs[1] == 0
    assert out["lse"][0] == pytest.approx(2.4076, abs=1e-4)
    assert out["argmax"].tolist() == [vocab - 1, -1, -1, -1]
    _, error = finished(rows, state, vocab, row_ids=torch.tensor([100, 90, 80, 70]))
    assert error == 70 * 8 + kind


def test_an_impossible_target_is_pulled_up_like_any_other() -> None:
    z = torch.tensor([[0.0, -INF, 1.0]])
    rows, state, out, error = forward(z, torch.tensor([1]))
    assert out["logp"].item() == -INF
    assert out["entropy_change"].isfinite().all()
    assert error == NO_ERROR
    gradient = torch.empty_like(z)
    rows.gradient(z, state, gradient, g_logp=torch.ones(1))
    expected, _ = reference.token_stats_backward(z.numpy(), np.array([1]), g_logp=1.0)
    assert_gradients(gradient, expected, torch.float32)


def test_far_from_zero_nothing_is_lost() -> None:
    """log_softmax through lse would be off by 5e-4 at 1e4."""
    z = torch.randn(4, 3000, generator=torch.Generator().manual_seed(8)) + 1e4
    against_the_oracle(z, cases.targets(8, 4, 3000), None, {}, cases.upstream(9, 4))


def test_ties_keep_the_first_column() -> None:
    z = torch.zeros(1, 9000)
    z[0, [2100, 2101, 8000]] = 1.0
    assert forward(z, torch.tensor([0]))[2]["argmax"].tolist() == [2100]


LOGIT = st.one_of(
    st.floats(-20, 20, width=32),
    st.sampled_from([-INF, 0.0, -0.0, 88.0, -88.0, -3e4, 3e4, 1e-30]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_extremes_and_masks(data: st.DataObject) -> None:
    n, vocab = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    dtype = data.draw(st.sampled_from(DTYPES))
    values = data.draw(st.lists(LOGIT, min_size=n * vocab, max_size=n * vocab))
    z = torch.tensor(values).view(n, vocab).to(dtype)
    # Rows of several pieces: the drawn columns end up at both ends of a wide row.
    wide = torch.full((n, 5000), -INF, dtype=dtype)
    half = vocab // 2
    wide[:, :half], wide[:, 5000 - (vocab - half) :] = z[:, :half], z[:, half:]
    z = wide if data.draw(st.booleans()) else z
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    # Rows without a finite logit are errors, tested elsewhere.
    mask &= z.isfinite().any(1)
    columns = st.integers(0, z.shape[1] - 1)
    t = torch.tensor(data.draw(st.lists(columns, min_size=n, max_size=n)))
    t = torch.where(z.gather(1, t[:, None])[:, 0].isfinite(), t, z.argmax(1))
    temperature = data.draw(st.sampled_from([1.0, 0.05, 30.0]))
    z[~mask] = NAN
    exact = {"mask": mask.numpy(), "temperature": temperature}
    truth = reference.token_stats(cases.to_numpy(z), t.numpy(), **exact)
    rows, state, out, error = forward(z, t, mask, temperature=temperature)
    assert error == NO_ERROR
    for name in ("logp", "entropy", "lse"):
        assert_values(out[name], truth[name], "float32")
    assert (out["logp"] <= 0).all()
    gradient = torch.empty_like(z)
    rows.gradient(z, state, gradient, g_logp=torch.ones(n), g_entropy=torch.ones(n))
    expected, _ = reference.token_stats_backward(
        cases.to_numpy(z), t.numpy(), g_logp=1.0, g_entropy=1.0, **exact
    )
    assert_gradients(gradient, expected, dtype, scale=1 + 1 / temperature)


def test_outputs_are_the_arguments_of_the_kernel() -> None:
    names = [name.removesuffix("_ptr") for name in finish.finish_kernel.arg_names]
    first = names.index("logp")
    assert tuple(names[first : first + len(finish.OUTPUTS)]) == finish.OUTPUTS


def test_wrong_arguments_are_named() -> None:
    t = torch.tensor([0, 1])
    z, state = torch.zeros(2, 5), empty_state(2)
    rows = TritonRows(2, targets=t)
    calls: dict[str, Any] = {
        r"targets must be torch\.int64": lambda: TritonRows(2, targets=t.int()),
        r"targets must have shape \[3\], got \[2\]": lambda: TritonRows(3, targets=t),
        r"mask must be torch\.bool": lambda: TritonRows(2, targets=t, mask=t),
        r"bias must be torch\.float32": lambda: TritonRows(2, targets=t, bias=z[0].bfloat16()),
        r"state must have shape \[2, 8\]": lambda: rows.forward(z, state[:, :7]),
        r"logits must be .*bfloat16.*got torch\.float64": lambda: rows.forward(z.double(), state),
        r"logits must be .* with 2 rows, got \[1, 5\]": lambda: rows.forward(z[:1], state),
        r"logits must have stride 1": lambda: rows.forward(torch.zeros(5, 2).t(), state),
        r"gradient must be like logits": lambda: rows.gradient(z, state, z.bfloat16()),
        r"an output must be one of logp, .*, got mean": lambda: rows.finalize(
            state, 5, t[:1], mean=torch.zeros(2)
        ),
        r"argmax must be torch\.int64": lambda: rows.finalize(
            state, 5, t[:1], argmax=torch.zeros(2)
        ),
        r"g_logp must be contiguous": lambda: rows.gradient(
            z, state, z, g_logp=torch.ones(1).expand(2)
        ),
        r"bias must cover columns 3 to 8, got 5": lambda: TritonRows(
            2, targets=t, bias=z[0]
        ).forward(z, state, start=3),
    }
    for message, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
