"""Weights that are not a plain matrix of numbers: refused by name, with what to do instead."""

from __future__ import annotations

from typing import Any

FLOATS = ("float32", "bfloat16", "float16", "float64")


def refuse_special_weight(op: str, weight: Any, *, sharded: bool = False) -> None:
    """Raise for quantised, sharded, empty and meta weights. `weight` is a torch tensor, and with
    `sharded` a rank's part of the vocabulary, which may be none of it."""
    import torch

    kind, dtype = type(weight).__name__, str(weight.dtype).removeprefix("torch.")
    if kind == "DTensor":
        raise TypeError(
            f"{op}: weight is a DTensor, of which this rank holds {list(weight.to_local().shape)} "
            f"of {list(weight.shape)}: pass logitless.gathered(weight), or call the op inside the "
            "forward of a module that FSDP2 gathers (docs/sharded.md), or between "
            "lm_head.unshard() and lm_head.reshard(); if all ranks of its mesh have the same "
            "tokens, pass vocab_group"
        )
    refuse_placeholder(op, weight)
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter) or kind.endswith("FakeTensor")
    if dtype not in FLOATS or not (plain or type(weight).__torch_dispatch__ is _plain_dispatch()):
        raise TypeError(
            f"{op}: weight must be a plain {', '.join(FLOATS[:-1])} or {FLOATS[-1]} tensor, got "
            f"{kind} of {dtype}: a quantised head has no exact gradient; dequantise it and pass "
            "the result, which then is what the log-probs are of"
        )
    if weight.is_meta:
        raise ValueError(f"{op}: weight must hold numbers, got a tensor on the meta device")
    if weight.numel() == 0 and not (sharded and weight.ndim == 2):
        raise ValueError(
            f"{op}: weight must be [V, H], got the empty {list(weight.shape)}: a shard that "
            "ZeRO-3 or FSDP has not gathered; call the op where the weight is whole, for "
            "DeepSpeed within deepspeed.zero.GatheredParameters([weight])"
        )


def refuse_sharded(op: str, name: str, array: Any) -> None:
    """Raise for a DTensor of which this rank would be taken to hold everything."""
    if type(array).__name__ != "DTensor":
        return
    plain = (
        "logitless.gathered(bias)"
        if name == "bias"
        else f"what this call is about as a plain tensor, {name}.to_local() or {name}.full_tensor()"
    )
    raise TypeError(
        f"{op}: {name} is a DTensor, of which this rank holds {list(array.to_local().shape)} of "
        f"{list(array.shape)}: pass {plain}"
    )


def refuse_placeholder(op: str, weight: Any) -> None:
    """Raise for what ZeRO-3 leaves of a parameter that is not gathered: it knows its real shape."""
    whole = getattr(weight, "ds_shape", None)
    if whole is not None and tuple(weight.shape) != tuple(whole):
        raise ValueError(
            f"{op}: weight is a placeholder of ZeRO-3, {list(weight.shape)} instead of "
            f"{list(whole)}: make the call, and its backward, within "
            "deepspeed.zero.GatheredParameters([weight])"
        )


def _plain_dispatch() -> Any:
    import torch

    return torch.Tensor.__torch_dispatch__
