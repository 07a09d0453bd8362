"""The one helper that registers torch.library ops from typed Python functions.

The parameters of an op's kernel are its arguments: tensors, numbers, text, or a NamedTuple of
those. The schema, the flat argument list that torch passes on, and the tuple that autograd wants of
a backward all follow from the annotations, so no index into an argument list is written anywhere.
"""

from __future__ import annotations

import operator
import types
import typing
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import registry

# An int that torch.compile may leave open, where another int is a constant of the graph.
Symbol = Annotated[int, "SymInt"]
Symbols = Annotated[list[int], "SymInt[]"]
# A tensor that the op writes to.
Written = Annotated[Tensor, "Tensor(a!)"]
WrittenList = Annotated[list[Tensor], "Tensor(a!)[]"]

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    list[Tensor]: "Tensor[]",
    bool: "bool",
    list[bool]: "bool[]",
    int: "int",
    list[int]: "int[]",
    float: "float",
    list[float]: "float[]",
    str: "str",
    torch.dtype: "ScalarType",
    Symbol: "SymInt",
    Symbols: "SymInt[]",
    Written: "Tensor(a!)",
    WrittenList: "Tensor(a!)[]",
}
_LIBRARY = torch.library.Library("logitless", "FRAGMENT")
# Asking a driver or the environment is not traceable, and needs to happen once a graph.
_constant_choice: Callable[[str, str, str], str] = torch.compiler.assume_constant_result(
    registry.choose
)

Needs = Callable[[str], bool]


class Autograd(NamedTuple):
    """How the gradients of an op are made.

    The backward makes no graph of its own: a second derivative is refused by name.
    """

    # the public op, which messages name
    op: str
    # the results that have a gradient; autograd gives None for the gradients of others
    differentiable: tuple[str, ...]
    # (arguments by name, results) -> a NamedTuple of what the backward is made of
    save: Callable[[Any, Any], Any]
    # (what was saved, gradients of the results, whether an argument needs one) -> gradients by the
    # name of the argument: "hidden", or "rows.bias" within a NamedTuple
    backward: Callable[[Any, Any, Needs], dict[str, Tensor | None]]
    # whether a backward of what was saved writes over it, so that it can run only once
    reuses_memory: Callable[[Any], bool]


def register(
    name: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    autograd: Autograd | None = None,
    direct: bool = False,
) -> Callable[..., Any]:
    """Define `logitless::<name>` with the signature of `kernel`; the returned op is called alike.

    `direct`: plain CPU tensors that nobody traces reach the kernel without the dispatcher, which
    costs 35 us a call, and 120 us with gradients. It writes to none of its arguments.

    `kernel` returns a tensor, a NamedTuple of tensors, or None; one kernel serves CPU and CUDA
    tensors. `fake` has the same parameters and gives results without values.
    """
    hints = typing.get_type_hints(kernel, include_extras=True)
    results = hints.pop("return", type(None))
    arguments, outputs = _Layout(hints), _Layout.of_results(results)
    _LIBRARY.define(f"{name}({arguments.schema}) -> {outputs.returns}")

    def flat(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            return outputs.flattened(function(*arguments.packed(args)))

        return call

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, flat(kernel), key)
    torch.library.register_fake(f"logitless::{name}", flat(fake), lib=_LIBRARY)
    overload: Any = getattr(torch.ops.logitless, name).default
    if autograd is not None:
        node = _node(name, overload, autograd, arguments, outputs)
        _LIBRARY.impl(name, _differentiated(overload, node), "Autograd", with_keyset=True)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, _without_autocast(overload, device), f"Autocast{device}")

    eager = None
    if autograd is not None and direct:
        eager = _direct(name, flat(kernel), *_autograd(autograd, arguments, outputs))

    def op(*args: Any) -> Any:
        values = arguments.flat(args)
        if eager is not None and _is_eager(values):
            return outputs.result(eager(values))
        return outputs.result(overload(*values))

    op.__name__ = name
    op.overload, op.flat = overload, arguments.flat  # type: ignore[attr-defined]
    return op


class _Layout:
    """Named values, some of them NamedTuples, and the flat list that they make."""

    def __init__(self, hints: dict[str, Any]) -> None:
        self.names = tuple(hints)
        # of each: where it starts in the flat list, where it stops, and its class if it has parts
        self.parts: list[tuple[int, int, Any]] = []
        self.fields: list[tuple[str, Any]] = []
        for name, hint in hints.items():
            start = len(self.fields)
            if _is_named_tuple(hint):
                inner = typing.get_type_hints(hint, include_extras=True)
                self.fields += [(f"{name}.{field}", inner[field]) for field in hint._fields]
                self.parts.append((start, len(self.fields), hint))
            else:
                self.fields.append((name, hint))
                self.parts.append((start, start + 1, None))
        self.nested = any(kind for *_, kind in self.parts)
        self.kind: Any = None

    @classmethod
    def of_results(cls, kind: Any) -> _Layout:
        if kind is type(None):
            return cls({})
        if not _is_named_tuple(kind):
            return cls({"": kind})
        layout = cls(typing.get_type_hints(kind, include_extras=True))
        layout.kind = kind
        return layout

    @property
    def schema(self) -> str:
        return ", ".join(
            f"{_schema_type(hint)} {name.replace('.', '_')}" for name, hint in self.fields
        )

    @property
    def returns(self) -> str:
        kinds = [_schema_type(hint) for _, hint in self.fields]
        return kinds[0] if len(kinds) == 1 else f"({', '.join(kinds)})"

    def flat(self, values: Iterable[Any]) -> list[Any]:
        if not self.nested:
            return list(values)
        out: list[Any] = []
        for value, (_, _, kind) in zip(values, self.parts, strict=True):
            if kind is None:
                out.append(value)
            else:
                out.extend(value)
        return out

    def packed(self, flat: Any) -> Any:
        if not self.nested:
            return flat
        return [
            flat[start] if kind is None else kind._make(flat[start:stop])
            for start, stop, kind in self.parts
        ]

    def result(self, flat: Any) -> Any:
        """What the caller of an op gets."""
        return flat if self.kind is None else self.kind(*self.packed(flat))

    def flattened(self, result: Any) -> Any:
        """What a kernel hands to torch."""
        return result if self.kind is None else tuple(self.flat(result))


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _schema_type(hint: Any) -> str:
    """The schema's word for an annotation; `X | None` is `X?`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    options = options or (typing.get_args(hint) if typing.get_origin(hint) is typing.Union else ())
    if type(None) in options:
        (inner,) = (option for option in options if option is not type(None))
        return f"{_schema_type(inner)}?"
    return _SCHEMA_TYPES[hint]


def _below_autograd(overload: Any, keyset: Any, args: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _differentiated(overload: Any, node: Any) -> Callable[..., Any]:
    """The op at the dispatcher's autograd key.

    torch.library.register_autograd does the same, and rebuilds the schema's argument list for
    every argument on the way: 41 arguments take 300 us of it.
    """

    def call(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return node.apply(keyset, *args)
        return _below_autograd(overload, keyset, args)

    return call


def _node(
    name: str, overload: Any, how: Autograd, arguments: _Layout, outputs: _Layout
) -> type[torch.autograd.Function]:
    """The node of autograd's graph; its first argument is the dispatcher's key set."""
    names = [name for name, _ in arguments.fields]
    place = {name: i for i, name in enumerate(names)}
    constant = [i for i, (name, _) in enumerate(outputs.fields) if name not in how.differentiable]
    given: Any = namedtuple("Arguments", arguments.names)  # type: ignore[misc]

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        output = _below_autograd(overload, keyset, args)
        flat = output if isinstance(output, tuple) else (output,)
        saved = how.save(given(*arguments.packed(args)), outputs.result(output))
        tensors: list[Tensor] = []
        ctx.saved, ctx.reuses_memory = _without_tensors(saved, tensors), how.reuses_memory(saved)
        ctx.mark_non_differentiable(*[flat[i] for i in constant])
        # or autograd would make zeros the size of the head for gradients that are not asked for
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return output

    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        begin_backward(ctx, how.op, reuses_memory=ctx.reuses_memory)
        saved = _with_tensors(ctx.saved, iter(ctx.saved_tensors))
        gradients: list[Tensor | None] = [None] * len(names)
        if any(gradient is not None for gradient in upstream):
            _, *needs = ctx.needs_input_grad
            found = how.backward(
                saved, outputs.result(upstream), lambda name: bool(needs[place[name]])
            )
            for name, gradient in found.items():
                gradients[place[name]] = gradient
        return (None, *gradients)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)


def _direct(
    name: str,
    kernel: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[[list[Any]], Any]:
    """The kernel, and with gradients a node of autograd around it."""

    def forward(ctx: Any, *values: Any) -> Any:
        out = kernel(*values)
        setup(ctx, values, out)
        return out

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    node: Any = type(f"logitless_{name}_", (torch.autograd.Function,), methods)

    def call(values: list[Any]) -> Any:
        if torch.is_grad_enabled():
            for x in values:
                if isinstance(x, Tensor) and x.requires_grad:
                    return node.apply(*values)
        return kernel(*values)

    return call


def _is_eager(values: list[Any]) -> bool:
    """Whether nobody but the CPU's kernel has to see a call. torch says so by no public function:
    where one of these is missing, the dispatcher is asked."""
    if torch.compiler.is_compiling() or _MODES is None or any(mode() for mode in _MODES):
        return False
    for x in values:
        if isinstance(x, Tensor) and (type(x) not in _PLAIN or not x.is_cpu):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


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


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """A NamedTuple with a mark where a tensor was; the tensors, in that order."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    if hasattr(value, "_fields"):
        return type(value)._make([_without_tensors(x, tensors) for x in value])
    return value


def _with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    if value is Tensor:
        return next(tensors)
    if hasattr(value, "_fields"):
        return type(value)._make([_with_tensors(x, tensors) for x in value])
    return value


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
    """`registry.choose` for a tensor; a constant of the graph where torch.compile traces."""
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
