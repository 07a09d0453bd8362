"""Log-probs of whole sequences from those of their tokens."""

from __future__ import annotations

from logitless.inputs.arrays import framework, shape_of
from logitless.inputs.checks import flag, nonsense, require
from logitless.inputs.naming import public
from logitless.inputs.sequences import sequences_of
from logitless.inputs.tokens import Array
from logitless.preference.arguments import given_floats, on_host


@public
def sequence_logp(
    logp: Array,  # [N] with cu_seqlens, or [B, T]
    mask: Array | None = None,  # bool, shaped like logp
    *,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
    average: bool = False,
    discount: float = 1.0,
) -> Array:  # [B]
    """The log-prob of each sequence, in nats. In plain code, of one sequence's valid tokens:

        logp.sum()                                       # / len(logp) with average
        (discount ** torch.arange(len(logp)) * logp).sum()

    Tokens are padded [B, T], or packed [N] with the sequences' borders in cu_seqlens. A token where
    the mask is False is not read, and counts neither in the average nor for the discount, which
    lies in (0, 1] and goes with sums. A sequence without a token gets 0. The result is float64
    where logp is, else float32, summed in float64, and differentiable in logp. NumPy arrays or
    torch tensors; a device is waited for by nothing.

    Raises ValueError for shapes that differ, cu_seqlens that do not rise from 0 to N and, on the
    CPU, values that are not finite; TypeError for dtypes.
    """
    flag("average", average)
    require("discount", discount, lambda x: 0.0 < x <= 1.0, "in (0, 1]")
    if average and discount != 1.0:
        raise nonsense("average=True", f"discount={discount}", "a discounted sum has no mean token")
    framework("sequence_logp", {"mask": mask, "cu_seqlens": cu_seqlens}, logp=logp)
    shape = shape_of(logp)
    letters = "[B, T]" if len(shape) == 2 else "[N]"
    given = given_floats("sequence_logp", letters, {"logp": logp}, mask=mask)
    xp, values = given.xp, given.values["logp"]
    sequences = sequences_of(xp, shape, logp, cu_seqlens, on_host=on_host(logp))
    if sequences is None:
        raise ValueError(
            f"logp must be [B, T], or [N] with cu_seqlens, got {list(shape)} and cu_seqlens=None"
        )
    ids, number = sequences.of_token, sequences.number
    values = values.reshape(-1)
    counts = xp.zeros(shape, logp) + 1.0 if given.mask is None else given.mask
    ones = xp.cast(counts, xp.float64).reshape(-1)
    if discount != 1.0:
        lengths = xp.sums(ones, ids, number)
        before = (lengths.cumsum(0) - lengths)[ids]
        values = values * discount ** xp.maximum(ones.cumsum(0) - ones - before, 0.0)
    total = xp.sums(values, ids, number)
    if average:
        total = total / xp.maximum(xp.sums(ones, ids, number), 1.0)
    return given.result(total)
