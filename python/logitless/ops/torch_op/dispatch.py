"""How a call of an op reaches its kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.ops.torch_op.layout import Layout

# Asking a driver or the environment is not traceable, and needs to happen once a graph.
_constant_choice: Callable[[str, str, str], str] = torch.compiler.assume_constant_result(
    registry.choose
)
_constant_choice_with: Callable[[str, str, str], str] = torch.compiler.assume_constant_result(
    registry.choose_with
)
_PLAIN = (Tensor, torch.nn.Parameter)
# Types of an op's other arguments. isinstance(x, Tensor) takes half a microsecond of what is none,
# and an op has forty.
_VALUES = frozenset((type(None), bool, int, float, str, torch.dtype))


def differentiated(overload: Any, node: Any, arguments: Layout, outputs: Layout) -> Any:
    """The op at the dispatcher's autograd key.

    torch.library.register_autograd does the same, and rebuilds the schema's argument list for
    every argument on the way: time that grows with the square of the number of arguments.
    """

    def below(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def call(keyset: Any, *args: Any) -> Any:
        places = tracked(args)
        if not places:
            return below(keyset, args)
        return recorded(
            node, lambda: outputs.result(below(keyset, args)), arguments.packed(args), places, args
        )

    return call


def tracked(values: Sequence[Any]) -> tuple[int, ...]:
    """The places of the arguments that autograd records."""
    if not torch.is_grad_enabled():
        return ()
    return tuple(
        i
        for i, x in enumerate(values)
        if type(x) not in _VALUES and isinstance(x, Tensor) and x.requires_grad
    )


def recorded(
    node: Any, run: Callable[[], Any], given: Any, places: tuple[int, ...], values: Sequence[Any]
) -> Any:
    """The flat results of `run`, as those of a node in autograd's graph. Torch goes through the
    arguments of a node more than once, so it is told only of the ones that it records."""
    return node.apply(run, given, places, *[values[i] for i in places])


def reaches_kernel(values: list[Any]) -> bool:
    """Whether nobody but the CPU's kernel has to see a call: no mode, tracer, profiler or autocast,
    no subclass of a tensor. torch says so by no public function: where one of these is missing, the
    dispatcher is asked."""
    if torch.compiler.is_compiling() or _MODES is None or any(mode() for mode in _MODES):
        return False
    for x in values:
        kind = type(x)
        if kind in _PLAIN:
            if not x.is_cpu:
                return False
        elif kind not in _VALUES and isinstance(x, Tensor):
            return False
    return not torch.is_autocast_enabled("cpu")


def _modes() -> tuple[Callable[[], Any], ...] | None:
    names = (
        "_len_torch_dispatch_stack", "_is_torch_function_mode_enabled", "_get_tracing_state",
        "_functorch.peek_interpreter_stack", "_autograd._profiler_enabled",
    )  # fmt: skip
    try:
        return tuple(operator.attrgetter(name)(torch._C) for name in names)
    except AttributeError:
        return None


_MODES = _modes()


def without_autocast(overload: Callable[..., Any], device: str) -> Callable[..., Any]:
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
    """`registry.choose` for a tensor; a constant of the graph where torch.compile traces."""
    return _constant_choice(backend, *_kind_of(tensor))


def backend_with(need: str, tensor: Tensor) -> str:
    """`registry.choose_with` for a tensor, in the same way."""
    return _constant_choice_with(need, *_kind_of(tensor))


def _kind_of(tensor: Tensor) -> tuple[str, str]:
    """Device and dtype as text."""
    device = tensor.device
    name = device.type if device.index is None else f"{device.type}:{device.index}"
    return name, str(tensor.dtype).removeprefix("torch.")
