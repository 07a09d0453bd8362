"""The tables, the page made of them and its example, and what a device is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import logitless as ll
from tests.preference.draws import array, given
from tests.support.paths import ROOT

P = ll.preference
PAGE = (ROOT / "docs" / "preference.md").read_text("utf-8")
A, X = np.array([-1.0, -0.5]), np.array([[-1.0, -2.0], [-0.5, -1.0]])
MASK = np.array([[True, True], [True, False]])
# Every row of the table, called.
CALLS: dict[str, tuple[Any, ...]] = {
    "dpo": (A, A, A, 2 * A),
    "ipo": (A, A, A, 2 * A),
    "spo": (X, np.array([0, 1])),
    "cpl": (A, 2 * A, -A),
    "oreo": (X, X, X, A, MASK, MASK),
    "implicit_rewards": (X, 2 * X, MASK, MASK),
    "outcome": (A, 2 * A, -A),
    "worst_case": (X,),
    "uncertainty_weighted": (X,),
}


def test_the_table_holds_each_function_by_its_name() -> None:
    assert set(CALLS) == set(P.TABLE)
    for name, row in P.TABLE.items():
        assert row.function is getattr(P, name)
        assert row.function.__name__ == name
        assert row.formula
        assert row.paper
        first = (row.function.__doc__ or "").split("\n\n")[0]
        assert "In plain code" in " ".join(first.split()), name


@pytest.mark.parametrize("name", CALLS)
def test_torch_and_numpy_agree_and_leave_their_input_alone(name: str) -> None:
    arguments, function = CALLS[name], P.TABLE[name].function
    before = [x.copy() for x in arguments]
    ours, theirs = function(*arguments), function(*given("torch", *arguments))
    for a, b in zip(*(x if name == "oreo" else (x,) for x in (ours, theirs)), strict=True):
        np.testing.assert_allclose(array(b), a, rtol=1e-12, atol=1e-12)
    for x, y in zip(before, arguments, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["sequence_logp", *CALLS])
def test_no_device_is_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tensors lay on one: only implicit_rewards asks whether values are finite."""
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    aten, asked = torch.ops.aten, []
    waits = (aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.masked_select)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if f.overloadpacket in waits:
                asked.append(f)
            return f(*args, **kwargs or {})

    for module in ("arguments", "pairs", "steps", "degree", "sequences"):
        monkeypatch.setattr(f"logitless.preference.{module}.on_host", lambda _: False)
    calls = {**CALLS, "sequence_logp": (X, MASK)}
    arguments = given("torch", *calls[name])
    if name == "sequence_logp":
        borders = torch.tensor([0, 1, 4], dtype=torch.int32)
        flat = [x.reshape(-1) for x in arguments]
        with Watch():  # type: ignore[no-untyped-call]
            ll.sequence_logp(*flat, cu_seqlens=borders, average=True)
            ll.sequence_logp(*flat, cu_seqlens=borders, discount=0.5)
    else:
        with Watch():  # type: ignore[no-untyped-call]
            P.TABLE[name].function(*arguments)
    assert bool(asked) == (name == "implicit_rewards")


def test_the_names_load_without_torch() -> None:
    code = "import logitless as ll, sys; ll.preference.dpo; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    code = "import logitless, sys; print([x for x in sys.modules if 'preference' in x])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def block(kind: str, name: str) -> str:
    (text,) = re.findall(rf"^```{kind} {re.escape(name)}\n(.*?)^```$", PAGE, re.M | re.S)
    return str(text)


def test_the_example_prints_what_the_page_says() -> None:
    code = block("python", "dpo.py")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == block("text", "dpo.py")
    # of hidden states, and of all logits
    fused, full = run.stdout.splitlines()
    assert fused == full


def test_dpo_of_a_tiny_model_is_that_of_its_full_logits() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    hidden, weight, ref = (torch.randn(*s, dtype=torch.float64)
                           for s in ((9, 8), (40, 8), (40, 8)))  # fmt: skip
    targets, borders = torch.randint(40, (9,)), torch.tensor([0, 3, 5, 6, 9], dtype=torch.int32)

    def ours(w: Any, h: Any) -> Any:
        logp = ll.linear_token_stats(h, w, targets).logp
        return ll.sequence_logp(logp, cu_seqlens=borders).chunk(2)

    def full(w: Any, h: Any) -> Any:
        logp = (h @ w.T).log_softmax(-1)[torch.arange(9), targets]
        return torch.stack([x.sum() for x in logp.split([3, 2, 1, 3])]).chunk(2)

    found = []
    for sums in (ours, full):
        leaves = [x.clone().requires_grad_() for x in (weight, hidden)]
        (chosen, rejected), references = sums(*leaves), sums(ref, hidden)
        if sums is ours:
            loss = P.dpo(chosen, rejected, *references, beta=0.3).mean()
        else:
            margin = chosen - references[0] - rejected + references[1]
            loss = -torch.nn.functional.logsigmoid(0.3 * margin).mean()
        found.append((loss, *torch.autograd.grad(loss, leaves)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
