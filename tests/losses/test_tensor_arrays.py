"""The losses written with torch's array functions, as a device's token kernels run them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import logitless as ll
from logitless.loss.evaluate.coefficients import rows_inputs
from logitless.loss.evaluate.inputs import loss_data
from logitless.loss.evaluate.token_loss import evaluate
from logitless.loss.spec import ClipCov, ClipV, PolicyLossSpec
from logitless.ops.batch_stats import batch_stats
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, make_batch

torch = pytest.importorskip("torch")
from tests.support.device.devices import tokens_there  # noqa: E402
from tests.support.device.token_batches import (  # noqa: E402
    assert_same,
    sized,
    stats_arrays,
    stats_of,
)
from tests.support.device.waits import NothingIsRead  # noqa: E402
from tests.support.losses.loss_calls import ours as policy_loss_of  # noqa: E402
from tests.support.losses.tensor_tokens import TensorTokens  # noqa: E402

# The core's own exp is used there too; what differs is the order in which torch adds.
CLOSE = {"rtol": 1e-12, "atol": 1e-15}
KERNELS = TensorTokens()


def case(
    spec: PolicyLossSpec, packed: bool, dtype: Any
) -> tuple[PolicyLossSpec, list[Any], dict[str, Any]]:
    batch = make_batch(50, dtype=dtype)
    if spec.aggregation == "seq-mean-token-sum-norm" and spec.max_length is None:
        spec = replace(spec, max_length=batch.mask.shape[1])
    flat, cu_seqlens = batch.packed() if packed else (batch, None)
    options: dict[str, Any] = dict(flat.optional)
    if cu_seqlens is not None:
        options["cu_seqlens"] = cu_seqlens
    return spec, list(flat.inputs), options


def to_tensors(x: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SPECS)
def test_the_same_as_of_numpy_arrays(name: str, dtype: Any, packed: bool) -> None:
    """And nothing is read by the host: neither with a batch nor where the call is the batch."""
    spec, data, options = case(SPECS[name], packed, dtype)
    known: list[Any] = [] if isinstance(spec.control, ClipV) else [None]
    packing = {k: options[k] for k in ("cu_seqlens",) if k in options}
    logp, old_logp, advantages, mask = data
    change = np.where(mask, np.sin(np.arange(mask.size)).reshape(mask.shape), np.nan).astype(dtype)
    known.append(batch_stats(
        logp, advantages, mask, spec, old_logp=old_logp, entropy=options["entropy"],
        entropy_change=change, rollout_logp=options["rollout_logp"],
        token_ids=options["token_ids"], seed=1, step=2, **packing,
    ))  # fmt: skip
    for batch in known:
        _, expected = coefficients(*data, spec, batch=batch, **options)
        given = {k: to_tensors(x) for k, x in options.items()}
        arrays = [to_tensors(x) for x in data]
        there = batch and batch._replace(
            selected=to_tensors(batch.selected), sequences=to_tensors(batch.sequences)
        )
        with NothingIsRead():
            tokens, out = coefficients(*arrays, spec, batch=there, kernels=KERNELS, **given)
        assert isinstance(tokens.logp, torch.Tensor)
        assert out.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-15)
        assert out.metrics == pytest.approx(expected.metrics, rel=1e-11, abs=1e-14)
        for ours, theirs in ((out.g_logp, expected.g_logp), (out.g_entropy, expected.g_entropy)):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                close: Any = CLOSE if dtype == np.float64 else {"rtol": 3e-7, "atol": 1e-12}
                np.testing.assert_allclose(ours.numpy(), theirs, **close)
                np.testing.assert_array_equal(ours.numpy() == 0, theirs == 0)


@pytest.mark.parametrize("name", SPECS)
def test_statistics_of_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loss that is given them: neither reads anything."""
    batch = make_batch(50, dtype=np.float32)
    spec = sized(SPECS[name], batch)
    expected = stats_of(batch, spec)
    truth, _ = policy_loss_of(vars(batch), spec, batch=expected)
    tokens_there(KERNELS, monkeypatch)
    given = {k: to_tensors(x) for k, x in vars(batch).items()}
    of_stats = {k: given[k] for k in stats_arrays(batch)}
    draws = spec.selects_in_call and isinstance(spec.control, ClipCov)
    with NothingIsRead():
        found = batch_stats(**of_stats, spec=spec, seed=1, step=2)
    assert isinstance(found.totals.tokens, torch.Tensor)
    assert_same(found, expected)
    if not draws:
        with NothingIsRead():
            loss, _ = policy_loss_of(given, spec, batch=found)
        assert loss.item() == pytest.approx(float(truth), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ll.corrections)
def test_weights_of_a_rollout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its metrics, of which nothing is read; of no token, of 16-bit log-probs too."""
    correction, batch = ll.corrections[name], make_batch(50, dtype=np.float32)
    given = (batch.old_logp, batch.optional["rollout_logp"], batch.mask)
    for mask in (batch.mask, np.zeros_like(batch.mask)):
        truth = ll.rollout_weights(*given[:2], mask, correction)
        with monkeypatch.context() as patch:
            tokens_there(KERNELS, patch)
            tensors = [to_tensors(x) for x in (*given[:2], mask)]
            with NothingIsRead():
                found = ll.rollout_weights(*tensors, correction)
                narrow = ll.rollout_weights(tensors[0].bfloat16(), *tensors[1:], correction)
        np.testing.assert_allclose(found.weights.numpy(), truth.weights, rtol=3e-7)
        np.testing.assert_array_equal(found.keep.numpy(), truth.keep)
        assert found.metrics.keys() == truth.metrics.keys()
        for key, x in found.metrics.items():
            assert x.item() == pytest.approx(truth.metrics[key], rel=1e-12, abs=1e-15), key
        assert (narrow.weights.dtype, narrow.keep.dtype) == (torch.bfloat16, torch.bool)


def test_rows_of_tensors() -> None:
    """A chunk of a call, of which nothing else is evaluated."""
    spec, data, options = case(SPECS["entropy"], False, np.float32)
    logp, old_logp, advantages, mask = map(to_tensors, data)
    entropy = to_tensors(options["entropy"])
    _, expected = coefficients(*data, spec, entropy=options["entropy"])
    index = to_tensors(np.flatnonzero(data[3])[3:20])
    with NothingIsRead():
        inputs = rows_inputs(
            loss_data(old_logp, advantages, mask, None, None, None, None, spec, None, None, 1.0),
            KERNELS,
            wide=False,
        )
        chunk = inputs.rows(index).with_values(logp.view(-1)[index], entropy.view(-1)[index])
        found = evaluate(chunk)
    np.testing.assert_array_equal(found.g_logp.numpy(), expected.g_logp[index.numpy()])
    np.testing.assert_array_equal(found.g_entropy.numpy(), expected.g_entropy[index.numpy()])


def test_what_waits_is_found() -> None:
    x = torch.ones(3)
    for wait in (lambda: x[0].item(), lambda: bool(x.sum() > 0), lambda: x[x > 0]):
        with pytest.raises(AssertionError, match="waits"), NothingIsRead():
            wait()
