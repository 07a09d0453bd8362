"""The policy loss of NumPy arrays: values only."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.inputs.tokens import Array
from logitless.loss.evaluate.coefficients import call_inputs, metrics_of
from logitless.loss.evaluate.inputs import LossData
from logitless.loss.evaluate.metrics import float32_values, metric_values
from logitless.loss.evaluate.token_loss import evaluate


def numpy_loss(
    logp: Array, entropy: Array | None, data: LossData
) -> tuple[Any, dict[str, np.float32]]:
    """The loss in the dtype of logp, and the metrics."""
    inputs = call_inputs(logp, entropy, data, registry.token_kernels("cpu"))
    sums = evaluate(inputs).sums
    table = metrics_of(data, entropy=entropy is not None)
    values = float32_values(metric_values(table, sums, data.total_tokens))
    loss = inputs.tokens.logp.dtype.type(sums[0])
    return loss, dict(zip(table.names, values, strict=True))
