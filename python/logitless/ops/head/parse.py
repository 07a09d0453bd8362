"""What the head's public functions ask of their arrays, checked once."""

from __future__ import annotations

from typing import Any

from logitless.inputs.arrays import check_tokens, check_weight, framework
from logitless.inputs.checks import choice, is_tensor
from logitless.inputs.options import ComputeOptions, LogitTransform
from logitless.inputs.sampling_mask import check_sampling_mask
from logitless.inputs.weights import refuse_special_weight


def under_autocast(hidden: Any, weight: Any) -> tuple[Any, Any]:
    if not (is_tensor(hidden) and is_tensor(weight)):
        return hidden, weight
    from logitless.ops.torch_op import autocast

    return autocast(hidden, weight)


def check_head_arrays(
    op: str,
    hidden: Any,
    weight: Any,
    targets: Any,
    mask: Any,
    head: LogitTransform,
    *,
    sharded: bool = False,
    of_rows: dict[str, Any] | None = None,
    anywhere: dict[str, Any] | None = None,
) -> tuple[int, ...]:
    """The shape of targets. `of_rows`: arrays that are checked elsewhere, but for their framework
    and device; `anywhere`: the same on any device."""
    optional = {"mask": mask, **head.arrays, **(of_rows or {})}
    framework(op, optional, anywhere=anywhere, hidden=hidden, weight=weight, targets=targets)
    if is_tensor(weight):
        refuse_special_weight(op, weight, sharded=sharded)
    vocab = check_weight(op, hidden, weight)
    return check_tokens(op, "hidden", hidden, targets, mask, head, vocab, sharded=sharded)


def check_masked_head(
    op: str,
    sampling_mask: Any,
    weight: Any,
    shape: tuple[int, ...],
    compute: ComputeOptions,
    weight_grad: str,
) -> None:
    """The options that a head call has with a sampling mask, of its tokens' shape."""
    choice("weight_grad", weight_grad, ("dense", "rows"))
    if weight_grad == "rows" and not is_tensor(weight):
        raise ValueError("weight_grad must be left at 'dense' for NumPy inputs, got 'rows'")
    if weight_grad == "rows" and weight.requires_grad and not weight.is_leaf:
        raise ValueError(
            "weight_grad='rows' needs a weight that no op has made, for others take no sparse "
            f"gradient, got one of {type(weight.grad_fn).__name__} (torch.autocast casts: pass a "
            "weight in its dtype)"
        )
    if sampling_mask is None:
        if weight_grad == "rows":
            raise ValueError("weight_grad='rows' needs a sampling_mask, got None")
        return
    check_sampling_mask(sampling_mask, shape)
    if compute.tail_mass:
        raise NotImplementedError(
            f"{op}: tail_mass with a sampling_mask is not built, got {compute.tail_mass}: rows "
            "that have a set are gathered from it already"
        )
