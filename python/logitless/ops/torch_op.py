"""The one helper that registers a torch.library op: schema, kernel, fake kernel, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from logitless.backends.registry import choose_backend

# Asking a driver or the environment is not traceable, and needs to happen once a graph.
_constant_choice: Callable[[str, str, str], str] = torch.compiler.assume_constant_result(
    choose_backend
)
_LIBRARY = torch.library.Library("logitless", "FRAGMENT")


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define `logitless::<schema>` and return its overload, ready to call.

    One kernel serves CPU and CUDA tensors: it makes its memory where its inputs are, and the op's
    backend argument says whose row kernels it calls.

    Backwards are ops too, registered without `backward` of their own: they run where autograd is
    off, since `begin_backward` refuses double backward.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"logitless::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"logitless::{name}", backward, setup_context=setup, lib=_LIBRARY
        )
    overload: Callable[..., Any] = getattr(torch.ops.logitless, name).default
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, _without_autocast(overload, device), f"Autocast{device}")
    return overload


def _without_autocast(overload: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The products inside an op keep the dtypes they were given; `autocast` has done the casts."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device}")

    def call(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return overload(*args)

    return call


def autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both as F.linear would take them under torch.autocast; gradients come back in their own
    dtypes. float64 stays, as it does there."""
    device = hidden.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    cast = (torch.float32, torch.bfloat16, torch.float16)
    one, other = (x.to(dtype) if x.dtype in cast else x for x in (hidden, weight))
    return one, other


def backend_of(backend: str, tensor: Tensor) -> str:
    """`choose_backend` for a tensor; a constant of the graph where torch.compile traces."""
    device, dtype = tensor.device, str(tensor.dtype).removeprefix("torch.")
    name = device.type if device.index is None else f"{device.type}:{device.index}"
    return _constant_choice(backend, name, dtype)


def begin_backward(ctx: Any, name: str, *, reuses_memory: bool) -> None:
    """Refuse what a backward cannot do, instead of giving silent zeros or wrong numbers.

    Always a second derivative; a second run where the first one wrote over what the forward saved.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: double backward (create_graph=True) is not supported")
    if getattr(ctx, "spent", False):
        raise RuntimeError(
            f"{name}: backward through the same forward a second time (retain_graph=True) is not "
            "supported: backward writes over what the forward has saved; run the forward again"
        )
    ctx.spent = reuses_memory


def graph_is_kept() -> bool:
    """Whether the backward that runs now may be followed by another through the same forward
    (retain_graph=True), so that what was saved has to stay as it is. True where torch, of which
    this is no public function, does not say."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())
