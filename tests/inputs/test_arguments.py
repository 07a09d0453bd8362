"""Every argument of every public function and spec: what is not honest is refused in one style."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import logitless as ll  # noqa: E402
from logitless.inputs.checks import shown  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

from tests.support import argument_cases as table  # noqa: E402


def test_every_public_name_has_its_rows() -> None:
    """A new function, class or argument fails here until the table knows it."""
    classes = {part.__name__ for part in table.parts()}
    tables = {"presets", "corrections"}
    known = set(table.FUNCTIONS) | table.RESULTS | table.OTHERS | classes | tables
    assert set(ll.__all__) == known == {*ll._HOMES, *ll._MODULES, "__version__"}
    for name, honest in table.FUNCTIONS.items():
        parameters = inspect.signature(getattr(ll, name)).parameters.values()
        named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        assert set(honest) == named, name


@pytest.mark.parametrize("numpy", [False, True], ids=["torch", "numpy"])
@pytest.mark.parametrize("function", table.FUNCTIONS)
def test_honest_arguments_are_taken(function: str, numpy: bool) -> None:
    if not numpy or function in table.NUMPY:
        table.honest_call(function, numpy)()


def refused(call: Any, start: str, words: str, value: Any = "") -> None:
    try:
        call()
    except (ValueError, TypeError) as error:
        kind, message = type(error), str(error)
    else:
        pytest.fail(f"{words} was taken: {shown(value)}")
    said = (shown(value), message)
    assert kind in (ValueError, TypeError), (kind, *said)
    assert message.startswith(start), said
    assert any(word in message for word in words.split("|")), said
    assert any(word in message for word in ("got", "outside", "unknown name")), said
    assert len(message) < 1200, said


@pytest.mark.parametrize(("function", "argument"), table.cases())
def test_dishonest_arguments_are_named(function: str, argument: str) -> None:
    called = table.CALLED.get(f"{function}.{argument}", table.CALLED.get(argument, argument))
    for value in table.of(function, argument):
        for numpy in (False, True)[: 1 + (function in table.NUMPY)]:
            call = table.honest_call(function, numpy, **{argument: value})
            refused(call, f"{function}: ", called, value)


@pytest.mark.parametrize(("part", "field"), table.part_cases())
def test_dishonest_fields_are_named(part: type[Any], field: str) -> None:
    needed = table.NEEDED.get(part.__name__, {})
    for value in table.FIELDS[table.fields_of(part)[field]]:
        refused(lambda value=value: part(**{**needed, field: value}), "", field, value)


# ---- what is honest in another way

NUMBERS: dict[str, list[tuple[str, float]]] = {
    "token_stats": [("temperature", 0.5), ("softcap", 2.0), ("vocab_start", 0)],
    "linear_token_stats": [("temperature", 0.5), ("memory_budget", 1 << 20), ("tail_mass", 0.125)],
    "linear_policy_loss": [("grad_scale", 2.0), ("logit_scale", 0.5)],
    "policy_loss": [("grad_scale", 2.0)],
    "linear_sample": [("seed", 3), ("step", 5), ("top_k", 2), ("top_p", 0.5), ("softcap", 2.0)],
    "batch_stats": [("seed", 3), ("step", 5)],
    "token_ids": [("max_length", 9)],
    "plan": [("tokens", 7), ("vocab", 50), ("budget", 1 << 24), ("tail_mass", 0.125)],
}  # fmt: skip
AS = {
    "numpy": lambda x: np.int32(x) if isinstance(x, int) else np.float32(x),
    "numpy wide": lambda x: np.uint64(x) if isinstance(x, int) else np.float64(x),
    "0-d array": np.asarray,
    "0-d tensor": torch.tensor,
}


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("function", NUMBERS)
def test_numbers_of_numpy_and_arrays_without_dimensions(function: str, kind: str) -> None:
    for argument, number in NUMBERS[function]:
        plain = table.honest_call(function, **{argument: number})()
        other = table.honest_call(function, **{argument: AS[kind](number)})()
        torch.testing.assert_close(_values(other), _values(plain), rtol=0, atol=0, equal_nan=True)


def _values(result: Any) -> list[Any]:
    if isinstance(result, torch.Tensor):
        return [result]
    named = result._asdict() if hasattr(result, "_asdict") else vars(result)
    return [x for x in named.values() if isinstance(x, (torch.Tensor, float, int))]


def test_numbers_of_numpy_in_specs() -> None:
    """Stored as Python's: they are equal, hash alike and go through torch's ops as text."""
    spec = ll.PolicyLossSpec(
        surrogate=ll.Clip(np.float64(0.25), np.array(0.5)), kl=ll.KL("k2", torch.tensor(0.5)),
        aggregation="seq-mean-token-sum-norm", max_length=np.int64(7),
    )  # fmt: skip
    plain = ll.PolicyLossSpec(
        surrogate=ll.Clip(0.25, 0.5), kl=ll.KL("k2", 0.5), max_length=7,
        aggregation="seq-mean-token-sum-norm",
    )  # fmt: skip
    assert spec == plain and hash(spec) == hash(plain) and repr(spec) == repr(plain)
    a, b = (table.honest_call("policy_loss", spec=x, totals=None)().loss for x in (spec, plain))
    assert a == b


def test_a_number_on_a_device_is_not_waited_for() -> None:
    with pytest.raises(TypeError, match=r"temperature must be a number that the CPU has.*\.item"):
        table.honest_call("token_stats", temperature=torch.ones((), device="meta"))()


def test_devices_are_named_with_their_argument() -> None:
    meta = torch.arange(4, device="meta")
    with pytest.raises(ValueError, match="targets must hold numbers, got a tensor on the meta"):
        table.honest_call("token_stats", targets=meta)()


def test_a_message_is_short_whatever_came() -> None:
    for value in ("x" * 10**6, [[0] * 10**5] * 10, {i: i for i in range(10**5)}, 10**100000):
        with pytest.raises((ValueError, TypeError)) as caught:
            table.honest_call("token_stats", temperature=value)()
        assert len(str(caught.value)) < 400


def test_a_caller_is_named_and_not_what_it_calls() -> None:
    with pytest.raises(ValueError, match=r"^linear_policy_loss: memory_budget must be at least"):
        table.honest_call("linear_policy_loss", memory_budget=1)()


@pytest.mark.parametrize("name", sorted(ll.presets))
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 3)], ids=str)
def test_batches_without_a_valid_token(name: str, shape: tuple[int, ...]) -> None:
    """The loss is 0 and no gradient is NaN, or what is missing is named."""
    spec, x = ll.presets[name], torch.full(shape, -1.0, dtype=torch.float64)
    ids = torch.arange(x.numel()).reshape(shape)
    seqlens = torch.tensor([0, 0], dtype=torch.int32) if len(shape) == 1 else None
    inputs: dict[str, Any] = {"entropy": -x, "rollout_logp": x, "token_ids": ids}
    batch = ll.batch_stats(
        x, x, x > 0, spec, old_logp=x, entropy_change=x, seed=0, step=0, cu_seqlens=seqlens,
        **inputs,
    )  # fmt: skip
    logp = x.clone().requires_grad_()
    loss, metrics = ll.policy_loss(
        logp, x, x, x > 0, _with_length(spec), ref_logp=x, batch=batch, cu_seqlens=seqlens,
        old_entropy=-x,
        **inputs,
    )  # fmt: skip
    loss.backward()
    assert loss == 0 and (logp.grad == 0).all()
    assert all(torch.isfinite(value) for value in metrics.values())


def _with_length(spec: Any) -> Any:
    import dataclasses

    if spec.aggregation != "seq-mean-token-sum-norm":
        return spec
    return dataclasses.replace(spec, max_length=4)


@pytest.mark.parametrize("bad", [[0, 1, 2, 2], [2**63 - 1] * 4, [-1, 0, 1, 2], [-(2**63), 0, 1, 2]])
@pytest.mark.parametrize("name", ["kl_cov", "clip_cov"])
def test_ids_that_repeat(name: str, bad: list[int]) -> None:
    """Also the largest one, in statistics and in a loss that selects for itself."""
    mask, ids = torch.ones(4, dtype=torch.bool), torch.tensor(bad)
    for function in ("batch_stats", "policy_loss"):
        change: dict[str, Any] = {"mask": mask, "spec": ll.presets[name], "token_ids": ids}
        change |= {"totals": None} if function == "policy_loss" else {}
        refused(table.honest_call(function, **change), f"{function}: ", "token_ids")
    mask[[0, 2, 3]] = False
    if bad[1] >= 0:
        table.honest_call("policy_loss", **change)()


# Controllers of a coefficient of either sign.
SIGNED = (ll.RepoController, ll.PIController)


@pytest.mark.parametrize("make", [ll.StepController, ll.LogController, *SIGNED])
def test_controllers_stay_numbers(make: Any) -> None:
    controller = make(target=1.0)
    for bad in (None, "a", float("nan"), -1.0, float("inf"), [1.0], True):
        with pytest.raises((ValueError, TypeError), match="entropy"):
            controller.update(bad)
    for entropy in (0.0, 1e308, np.float32(2.0), torch.tensor(0.5), 1e308, 0):
        value = controller.update(entropy)
        assert np.isfinite(value) and (value >= 0 or make in SIGNED)
    state = controller.state_dict()
    with pytest.raises((ValueError, TypeError), match="coefficient"):
        controller.load_state_dict({**state, "coefficient": float("nan")})
    assert controller.state_dict() == state


def test_a_log_controller_does_not_overflow() -> None:
    controller = ll.LogController(target=1.0, rate=1e300, high=2.0)
    assert controller.update(0.0) == 2.0
    assert controller.update(5.0) > 0
    assert controller.update(0.0) == 2.0
