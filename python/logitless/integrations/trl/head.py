"""The head that a model gets in place of TRL's."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import logitless as ll
from logitless.integrations.transformers.layer import (
    head_layer,
    in_place_of,
    no_columns,
    only_call,
)
from logitless.integrations.trl import hooks
from logitless.integrations.trl.call import HeadCall, head_call
from logitless.integrations.trl.columns import chained, tile_logits, tiles

# Fields of TRL's output beside log_probs, and the extra that each is made of.
EXTRAS = {"log_sum_sq_probs": "log_sum_p2", "is_top1": "argmax"}
FIELDS = ("log_probs", "entropy", "mean_logits", *EXTRAS)
# What may run in a forward in place of the scoring, as `fused_lm_head=`: it returns fields of
# TRL's output, of every position.
Scorer = Callable[[HeadCall], dict[str, Any]]


def add_head(
    model: Any,
    temperature: float = 1.0,
    cast_lm_head_to_fp32: bool = False,
    outputs: tuple[str, ...] = ("log_probs",),
    *,
    memory_budget: int | str | None = None,
) -> None:
    """`model(..., labels=labels, fused_lm_head=True)` returns log-probs of labels, not logits.

    Softcap, scale and cut columns are those that `ll.head_of` measures. The whole forward of the
    model runs, but for the product of its head. Without `fused_lm_head` it is as it was.
    """
    other = set(outputs) - set(FIELDS)
    if other:
        raise hooks.unknown(f"outputs of {hooks.HEAD} among {', '.join(FIELDS)}", repr(other))
    found = ll.head_of(model)
    own = model.forward
    result = hooks.output_class()

    # torch.compile traces the model inside, and leaves this to Python: layers change for a call.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    # `generate` and Trainer read the signature of a model's forward.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: Any = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return own(*args, **inputs)
        labels = inputs.pop("labels", None)
        shifted = inputs.pop("shift_labels", None)
        count = inputs.pop("num_items_in_batch", None)
        inputs["use_cache"] = False
        layer = head_layer(self)
        with in_place_of(layer, lambda hidden: no_columns(layer, hidden)) as calls:
            output = own(*args, **inputs)
        hidden, _ = only_call(calls)
        aux_loss = getattr(output, "aux_loss", None)
        if aux_loss is None and inputs.get("output_router_logits"):
            raise ValueError(f"{type(self).__name__} returns no aux_loss with its router logits")
        context: Any = nullcontext()
        if cast_lm_head_to_fp32:
            hidden = hidden.float()
            context = torch.autocast(hidden.device.type, enabled=False)
        with context:
            call = head_call(self, hidden, found, temperature)
            if callable(fused_lm_head):
                return result(**fused_lm_head(call), aux_loss=aux_loss)
            # States stay as they are, for a part of them would be a copy.
            if shifted is None:
                targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            else:
                targets = shifted
            fields = score(call, targets, outputs, memory_budget)
        if shifted is None:
            fields = {k: None if x is None else x[:, :-1] for k, x in fields.items()}
        loss = -fields["log_probs"].sum() / (
            fields["label_mask"].sum().clamp(min=1) if count is None else count
        )
        if aux_loss is not None:
            config = self.config.get_text_config()
            loss = loss + getattr(config, "router_aux_loss_coef", 0.0) * aux_loss
        return result(loss=loss, aux_loss=aux_loss, **fields)

    model.forward = types.MethodType(forward, model)


def score(
    call: HeadCall,
    labels: Tensor,  # [B, T], -100 where there is none
    outputs: tuple[str, ...],
    memory_budget: int | str | None = None,
) -> dict[str, Any]:
    """Fields of TRL's output, 0 where there is no label."""
    labels = labels.to(call.hidden.device)
    mask = labels != -100
    wanted = {field: extra for field, extra in EXTRAS.items() if field in outputs}
    stats = ll.linear_token_stats(
        call.hidden, call.weight, labels, mask=mask, extras=tuple(wanted.values()),
        memory_budget=memory_budget, **call.options,
    )  # fmt: skip
    fields: dict[str, Any] = {field: stats.extras[extra] for field, extra in wanted.items()}
    if "is_top1" in fields:
        fields["is_top1"] = (fields["is_top1"] == labels) & mask
    if "mean_logits" in outputs:
        fields["mean_logits"] = mean_logits(call, mask)
    entropy = stats.entropy if "entropy" in outputs else None
    return {
        **dict.fromkeys(FIELDS), "log_probs": stats.logp, "entropy": entropy, "label_mask": mask,
        **fields,
    }  # fmt: skip


@torch.no_grad()
def mean_logits(call: HeadCall, mask: Tensor) -> Tensor:  # [B, T]
    """Over the vocabulary. Without a softcap it is the logit of the mean row, at no product."""
    cap, scale, bias = (call.options[x] for x in ("softcap", "logit_scale", "bias"))
    bias = call.weight.new_zeros(len(call.weight)) if bias is None else bias
    hidden, lora = call.hidden[mask].float(), call.options.get("adapter", [])
    if cap is None:
        row = call.weight.mean(0, dtype=torch.float32)
        mean = scale * (hidden @ row + bias.mean(dtype=torch.float32))
        for A, B, factor in lora:
            mean += scale * factor * (hidden @ A.float().T @ B.mean(0, dtype=torch.float32))
        mean = mean / call.options["temperature"]
    else:
        mean = hidden.new_zeros(len(hidden))
        for tile in tiles(len(bias)):
            logits = chained(tile_logits(call, hidden, tile), call.options)
            mean += logits.sum(dim=1) / len(bias)
    return hidden.new_zeros(mask.shape).masked_scatter(mask, mean)
