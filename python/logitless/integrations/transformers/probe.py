"""Measures a model's head on a few tokens, and refuses one that the options do not explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from logitless.diagnostics.head_module import (
    adapter_names,
    compare_logits,
    evaluating,
    exact_product,
)
from logitless.inputs.options import LogitTransform
from logitless.integrations.transformers.adapter import Adapter, adapters_of
from logitless.integrations.transformers.chain import ROWS, Chain, config_numbers, fit, ramp
from logitless.integrations.transformers.head import Head
from logitless.integrations.transformers.layer import (
    head_layer,
    in_place_of,
    logits_of,
    only_call,
    unwrapped,
)


class Found(NamedTuple):
    """A head, and how well it explains the model's logits."""

    head: Head
    # rows of the weight that make no logit
    cut: int
    # the largest difference to model(...).logits, whose largest is `size`
    error: float
    size: float


def probe(model: Any, inputs: dict[str, Any]) -> Found:
    """Three forwards: as the model is, with known numbers for the product, and without it."""
    bare = unwrapped(model)
    layer = head_layer(bare)
    name = type(bare).__name__
    try:
        # Before the forwards, for engines may take the weight away after one.
        weight, whole, bias = _arrays(layer)
        lora = adapters_of(layer, len(whole))
        # Where FSDP2 wraps peft, peft's module is the root that gathers.
        run = model if _sharded(model) else bare
        with _undisturbed(run, whole):
            inputs = inputs or _tokens(bare, len(whole))
            return _measure(run, layer, weight, whole, bias, lora, inputs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _measure(
    model: Any,
    layer: nn.Module,
    weight: Tensor,  # [V, H], or sharded
    whole: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    lora: list[Adapter],
    inputs: dict[str, Any],
) -> Found:
    with in_place_of(layer, layer.forward) as calls:
        logits = _forward(lambda: logits_of(model(**inputs)), inputs)
    states, product = only_call(calls)
    hidden = states.reshape(-1, states.shape[-1])
    rows, vocab = len(hidden), len(whole)
    if hidden.shape[1] != whole.shape[1] or product.shape != (*states.shape[:-1], vocab):
        raise ValueError(
            f"its head makes {list(product.shape)} of states {list(states.shape)}, which is no "
            f"product with its weight {list(whole.shape)}"
        )
    if logits.shape[:-1].numel() != rows or rows < ROWS:
        raise ValueError(
            f"its head reads {rows} rows and its logits have {logits.shape[:-1].numel()}: both "
            f"must be the same, at least {ROWS}"
        )
    product, logits = product.reshape(rows, vocab), logits.reshape(rows, -1)
    exact = exact_product(hidden, whole)
    for A, B, scale in lora:
        low = hidden.double() @ _whole(A).double().t() * scale
        exact = exact + low @ _whole(B).double().t()
    _check_product(product, exact, layer, hidden, whole, _whole(bias))

    z = ramp(rows, vocab, states.device)
    with in_place_of(layer, lambda hidden: z.reshape(*hidden.shape[:-1], vocab)):
        known = _forward(lambda: logits_of(model(**inputs)), inputs)
    chain = fit(z, known.reshape(rows, -1), list(config_numbers(model.config)))
    _check_chain(chain, product, logits)

    with torch.enable_grad():
        cut = vocab - chain.vocab
        head = Head(
            weight[: chain.vocab] if cut else weight,
            bias[: chain.vocab] if cut and bias is not None else bias,
            chain.softcap,
            chain.logit_scale,
            chain.vocab,
            tuple(adapters_of(layer, chain.vocab)) if lora else (),
        )
    again = _forward(lambda: head.hidden(model, **inputs), inputs)
    off = float((again - states).abs().max())
    # A device may add in another order.
    if off > 32 * torch.finfo(states.dtype).eps * float(states.abs().max()):
        raise ValueError(f"its states differ by {off:.3g} between two forwards of one input")
    exact = exact if bias is None else exact + _whole(bias)
    error = float((chain(exact) - logits).abs().max())
    return Found(head, cut, error, float(logits.abs().max()))


def _check_product(
    product: Tensor,  # [n, V]
    exact: Tensor,  # [n, V] float64, of hidden and weight
    layer: nn.Module,
    hidden: Tensor,  # [n, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
) -> None:
    """The head itself is a weight and a bias."""
    found = compare_logits(product, exact, layer, hidden, weight, LogitTransform(bias=bias))
    if found.cause:
        adapters = adapter_names(layer)
        advice = f": it has an adapter ({', '.join(adapters)}), merge it" if adapters else ""
        raise ValueError(
            f"its head, a {type(layer).__name__}, gives other logits than its weight and bias, by "
            f"up to {found.largest:.3g} where {found.allowed:.3g} is rounding{advice}"
        )


def _check_chain(chain: Chain, product: Tensor, logits: Tensor) -> None:
    """The chain on the products of the model itself: it may depend on more than them."""
    expected = chain(product.double())
    eps = max(torch.finfo(product.dtype).eps, torch.finfo(logits.dtype).eps)
    off = (logits - expected).abs()
    if bool((off > 16 * eps * expected.abs() + 1e-12).any()):
        raise ValueError(
            f"its logits differ from softcap and scale of its head's product by up to "
            f"{float(off.max()):.3g}"
        )


def _arrays(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
    """(the weight as it is, the whole of it, the bias) of a layer."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    kind = type(layer).__name__
    if not isinstance(weight, Tensor):
        raise ValueError(f"its head, a {kind}, has no weight")
    if weight.ndim != 2:
        raise ValueError(
            f"its head, a {kind}, must hold a weight [V, H], got {list(weight.shape)}: call "
            "head_of before an engine flattens it"
        )
    if weight.is_meta:
        raise ValueError(f"its head, a {kind}, has a weight without data, on the meta device")
    plain = type(weight) in (Tensor, nn.Parameter) or type(weight).__name__ == "DTensor"
    if not (plain and weight.is_floating_point() and weight.element_size() > 1):
        raise ValueError(
            f"its head, a {kind}, has a quantised weight: {type(weight).__name__} of {weight.dtype}"
        )
    return weight, _whole(weight), bias if isinstance(bias, Tensor) else None


def _whole(array: Any) -> Any:
    """Of a DTensor all of it, without a gradient; any other array as it is."""
    return array.full_tensor().detach() if type(array).__name__ == "DTensor" else array


def _tokens(model: Any, vocab: int) -> dict[str, Any]:
    """Random ids that stand for text alone."""
    table = model.get_input_embeddings().weight
    config = model.config
    special = {
        value
        for part in (config, config.get_text_config(decoder=True))
        for key, value in part.to_dict().items()
        if key.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    text = [id for id in range(min(vocab, len(table))) if id not in special]
    chosen = torch.randint(len(text), (1, ROWS), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(text)[chosen].to(table.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return inputs


def _forward(call: Callable[[], Tensor], inputs: dict[str, Any]) -> Tensor:
    """A forward of the model; what its own code raises is told as it came."""
    try:
        return call()
    except Exception as error:
        raise ValueError(
            f"a forward of {', '.join(inputs)} failed, {type(error).__name__}: {error}; if the "
            "model needs other inputs, pass head_of(model, **inputs)"
        ) from error


@contextmanager
def _undisturbed(model: Any, weight: Tensor) -> Iterator[None]:
    """Evaluation mode, without gradients and autocast; modes and random states are as before."""
    kind = weight.device.type
    devices = [weight.device] if kind == "cuda" else []
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices),
        torch.autocast(kind, enabled=False),
        _own_forward(model),
        evaluating(model),
    ):
        try:
            yield
        finally:
            if _sharded(model):
                # Its root stays gathered after a forward.
                model.reshard()


@contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """accelerate prepares a model with a forward that turns autocast on; it keeps the model's."""
    own, put = (vars(model).get(name) for name in ("_original_forward", "forward"))
    if own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = put


def _sharded(model: Any) -> bool:
    """Whether FSDP2 shards it."""
    return any(base.__name__ == "FSDPModule" for base in type(model).__mro__)
