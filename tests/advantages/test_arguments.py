"""What the functions refuse and how they say so, the table, and what a device is asked for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import logitless as ll
from tests.advantages.draws import KINDS, given

A = ll.advantages
R, IDS = np.array([[1.0, 0.0], [0.5, 0.0]]), np.array([3, 3, 1, 1])
HOLE = np.array([[True, True], [True, False]])
STEPS = np.array([[True, False], [True, False]])
NAN = np.where(HOLE, np.nan, 0.0)
INTS = np.ones((2, 2), np.int64)

REFUSED: list[tuple[Any, str, tuple[Any, ...], dict[str, Any], type, str]] = [
    (k, f, a, o, e, m)
    for k in KINDS
    for f, a, o, e, m in [
        ("grpo", (R[0],), {}, ValueError, "grpo: rewards must be [G, K], G groups of K answers, "
         "or [B] with groups=, the id of each answer's group; got rewards [2]"),
        ("grpo", (R, IDS[:2]), {}, ValueError, "grpo: groups goes with rewards [B], one id an "
         "answer; rewards [2, 2] are groups of 2 already"),
        ("rloo", (R[0], IDS), {}, ValueError, "rloo: groups must be [B] = [2], got [4]"),
        ("rloo", (R[0], R[0]), {}, TypeError, "rloo: groups must be int64 or int32, got"),
        ("dr_grpo", (INTS,), {}, TypeError, "dr_grpo: rewards must be float32 or"),
        ("dr_grpo", (R, None, HOLE[0]), {}, ValueError,
         "dr_grpo: mask must be shaped like rewards, [2, 2], got"),
        ("dr_grpo", (R, None, R), {}, TypeError, "dr_grpo: mask must be bool, got"),
        ("max_rl", (R - 0.5,), {}, ValueError, "max_rl: rewards must be >= 0, got -0.5 at [1]"),
        ("pass_at_k", (R, 2), {}, ValueError, "pass_at_k: rewards must be 0 or 1, got 0.5 at [2]"),
        ("pass_at_k", (R, 0), {}, ValueError, "pass_at_k: k must be an int >= 1"),
        ("qae", (R,), {"quantile": 1.0}, ValueError, "qae: quantile must be in (0, 1), got 1.0"),
        ("grpo", (R,), {"eps": 0.0}, ValueError, "grpo: eps must be finite and > 0, got 0.0"),
        ("opo", (R, R), {}, TypeError, "opo: lengths must be int64 or int32, got"),
        ("opo", (R, INTS[:1]), {}, ValueError, "opo: lengths must be shaped like rewards, [2, 2]"),
        ("opo", (R, -INTS), {}, ValueError, "opo: lengths must be >= 0, got -1.0 at [0]"),
        ("remax", (R, NAN), {}, ValueError, "remax: greedy_rewards must be finite where they "
         "count, got nan at [0, 0]"),
        ("gdpo", (np.stack([R, R]), (1.0,)), {}, ValueError,
         "gdpo: weights must be 2 numbers, one for each kind of reward, got (1.0,)"),
        ("returns", (R[0], HOLE[0]), {}, ValueError, "returns: rewards must be [B, T]"),
        ("returns", (R, HOLE), {"gamma": 1.5}, ValueError, "returns: gamma must be in [0, 1]"),
        ("gae", (R, NAN, HOLE), {}, ValueError,
         "gae: values must be finite where they count, got nan at [0, 0]"),
        ("gae", (R, R[0], HOLE), {}, ValueError, "gae: values must be shaped like rewards"),
        ("gae", (R, R, HOLE), {"lam": 2.0}, ValueError, "gae: lam must be in [0, 1], got 2.0"),
        ("whiten", (R, R), {}, TypeError, "whiten: mask must be bool, got"),
        ("whiten", (R, 2 * INTS), {}, ValueError,
         "whiten: mask must be bool or integers 0 and 1, got 2 at [0, 0]"),
        ("length_adaptive_lambda", (IDS * 0,), {}, ValueError,
         "length_adaptive_lambda: lengths must be >= 1, got 0.0 at [0]"),
        ("optimal_token_baseline", (R, R, R, IDS, HOLE), {}, ValueError,
         "optimal_token_baseline: groups must be [B] = [2], got [4]"),
        ("pure", (R, STEPS, IDS[:2], ~STEPS), {}, ValueError,
         "pure: steps must be False where the mask is, got 1.0 at [0, 0]"),
        ("min_form", (R, STEPS), {"temperature": 0.0}, ValueError,
         "min_form: temperature must be finite and > 0"),
    ]
]  # fmt: skip


def spread(kind: str, arguments: tuple[Any, ...]) -> list[Any]:
    return [given(kind, x)[0] if isinstance(x, np.ndarray) else x for x in arguments]


@pytest.mark.parametrize(("kind", "name", "arguments", "options", "error", "message"), REFUSED)
def test_refused(
    kind: str, name: str, arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        getattr(A, name)(*spread(kind, arguments), **options)


def test_nan_and_infinite_rewards_are_named_with_their_place() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        rewards = R.copy()
        rewards[1, 0] = bad
        for name in ("grpo", "dr_grpo", "rloo", "gpg", "max_rl", "qae", "grpo_passk"):
            with pytest.raises(ValueError, match=rf"{name}: rewards must be .* at \[1, 0\]"):
                getattr(A, name)(rewards)


def test_lists_mixed_kinds_and_gradients_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="grpo: rewards must be a torch tensor or a NumPy array"):
        A.grpo([[1.0, 0.0]])
    with pytest.raises(TypeError, match="all torch or all NumPy"):
        A.grpo(torch.ones(2), np.ones(2, np.int64))
    with pytest.raises(ValueError, match="grpo: rewards is data and gets no gradient"):
        A.grpo(torch.ones(2, 2, requires_grad=True))
    with pytest.raises(TypeError, match=r"gae: .*all torch or all NumPy"):
        A.gae(*spread("torch", (R, R, HOLE)), lam=R[0])


# Every row of the table, called.
CALLS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("grpo", "dr_grpo", "rloo", "gpg", "max_rl", "qae", "grpo_passk"), (R, None)),
    "pass_at_k": (np.round(R), 2),
    "remax": (R, R),
    "opo": (R, INTS),
    "reinforce_plus_plus": (R, HOLE),
    "reinforce_plus_plus_baseline": (R, INTS),
    "gdpo": (np.stack([R, R]),),
    "gae": (R, R, HOLE),
    "length_adaptive_lambda": (IDS,),
    "optimal_token_baseline": (R, -R, R, IDS[:2], HOLE),
    "min_form": (R, STEPS),
    "pure": (R, STEPS, IDS[:2], HOLE),
}


def test_the_table_holds_each_function_by_its_name() -> None:
    assert set(CALLS) == set(A.TABLE)
    for name, row in A.TABLE.items():
        assert row.function is getattr(A, name)
        assert row.function.__name__ == name
        assert row.formula
        assert row.paper
        first = (row.function.__doc__ or "").split("\n\n")[0]
        assert "In plain code" in " ".join(first.split()), name


@pytest.mark.parametrize("name", CALLS)
def test_torch_and_numpy_agree_and_leave_their_input_alone(name: str) -> None:
    arguments = CALLS[name]
    before = [x.copy() for x in arguments if isinstance(x, np.ndarray)]
    ours, theirs = A.TABLE[name].function(*arguments), A.TABLE[name].function
    tensors = theirs(*spread("torch", arguments))
    for a, b in zip(*(x if name == "gae" else (x,) for x in (ours, tensors)), strict=True):
        np.testing.assert_allclose(b.numpy(), a, rtol=1e-12, atol=1e-12)
    for x, y in zip(before, (x for x in arguments if isinstance(x, np.ndarray)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", CALLS)
def test_a_device_is_asked_only_whether_values_are_good(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    aten, asked = torch.ops.aten, []
    waits = (aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.masked_select)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if f.overloadpacket in waits:
                asked.append(f)
            return f(*args, **kwargs or {})

    arguments = spread("torch", CALLS[name])
    with Watch():  # type: ignore[no-untyped-call]
        A.TABLE[name].function(*arguments)
    allowed = 2 * sum(isinstance(x, torch.Tensor) for x in arguments)
    if name == "gdpo":
        # a kind of reward at a time
        allowed *= 2
    assert 0 < len(asked) <= allowed
    assert all(f.overloadpacket is aten._local_scalar_dense for f in asked)
