"""The policy loss of NumPy arrays: values only."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.inputs.tokens import Array
from logitless.loss.evaluate.coefficients import call_inputs, metrics_of
from logitless.loss.evaluate.inputs import LossData
from logitless.loss.evaluate.token_loss import evaluate


def numpy_loss(
    logp: Array, entropy: Array | None, data: LossData
) -> tuple[Any, dict[str, np.float32]]:
    """The loss in the dtype of logp, and the metrics."""
    kernels = registry.token_kernels("cpu")
    inputs = call_inputs(logp, entropy, data, kernels)
    sums = evaluate(inputs).sums
    table = metrics_of(data, entropy=entropy is not None)
    wide = inputs.tokens.logp.dtype == np.float64
    loss, values = kernels.outputs(table.sums, sums, data.total_tokens, wide=wide)
    return loss[()], dict(zip(table.names, values, strict=True))
