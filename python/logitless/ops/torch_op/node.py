"""The node that an op is in autograd's graph."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.ops.torch_op.layout import Layout

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


def node(name: str, how: Autograd, arguments: Layout, outputs: Layout) -> Any:
    """`apply(run, given, places, *tensors)` gives the flat results of `run()`: given are the typed
    arguments, and tensors those at these places of the flat ones, which autograd records."""
    names = [name for name, _ in arguments.fields]
    constant = [i for i, (name, _) in enumerate(outputs.fields) if name not in how.differentiable]
    given_type: Any = namedtuple("Arguments", arguments.names)  # type: ignore[misc]

    def forward(
        ctx: Any, run: Callable[[], Any], given: Any, places: tuple[int, ...], *_: Tensor
    ) -> Any:
        result = run()
        output = outputs.flattened(result)
        flat = output if isinstance(output, tuple) else (output,)
        saved = how.save(given_type(*given), result)
        tensors: list[Tensor] = []
        ctx.saved, ctx.reuses_memory = _without_tensors(saved, tensors), how.reuses_memory(saved)
        ctx.names = [names[place] for place in places]
        ctx.mark_non_differentiable(*[flat[i] for i in constant])
        # or autograd would make zeros the size of the head for gradients that are not asked for
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return output

    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        begin_backward(ctx, how.op, reuses_memory=ctx.reuses_memory)
        saved = _with_tensors(ctx.saved, iter(ctx.saved_tensors))
        found: dict[str, Tensor | None] = {}
        if any(gradient is not None for gradient in upstream):
            asked = zip(ctx.names, ctx.needs_input_grad[3:], strict=True)
            needed = {name for name, needs in asked if needs}
            found = how.backward(saved, outputs.result(upstream), lambda name: name in needed)
        return (None, None, None, *[found.get(name) for name in ctx.names])

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)


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
