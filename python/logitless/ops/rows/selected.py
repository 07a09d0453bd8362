"""Log-probs of one set of ids in every row: the chain of a few logits, less the row's lse.

Plain torch, whose autograd serves them, or NumPy: they are few, and all that the vocabulary has to
say is in lse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from logitless.inputs.arrays import check_dtype, shape_of
from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.gradients import is_traced
from logitless.inputs.options import LogitTransform
from logitless.inputs.records import changed
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.sharding.rendezvous import Facts, fingerprint

if TYPE_CHECKING:
    from logitless.ops.sharding.shard import Shard


def check_selected(op: str, ids: Any, vocab: int, *, sharded: bool) -> None:
    """Ids [K] of the vocabulary, whose size a rank with a part of it does not know yet; those on a
    device are not looked at."""
    if ids is None:
        return
    if sharded and is_traced(ids):
        raise NotImplementedError(
            f"{op}: selected_ids with vocab_group in a graph of torch.compile is not built"
        )
    if len(shape_of(ids)) != 1:
        raise ValueError(f"{op}: selected_ids must be [K], got shape {list(shape_of(ids))}")
    check_dtype(op, "selected_ids", ids, "int64", "int32")
    if is_tensor(ids) and (is_traced(ids) or not ids.is_cpu):
        return
    if not sharded:
        check_in_vocabulary(op, ids, vocab)


def check_in_vocabulary(op: str, ids: Any, vocab: int) -> None:
    if is_tensor(ids) and not ids.is_cpu:
        return
    held = ids.numpy() if is_tensor(ids) else ids
    wrong = (held < 0) | (held >= vocab)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"{op}: selected_ids must be in [0, {vocab}), got {held[place]} at [{place}]"
        )


def refuse_selected(sampling_mask: Any, ids: Any) -> None:
    """Ids outside of a row's set have no log-prob."""
    if sampling_mask is not None and ids is not None:
        raise ValueError(
            "selected_ids must be None with a sampling_mask, outside of whose sets ids have no "
            f"log-prob, got {shown(ids)}"
        )


def selected_facts(ids: Any) -> Facts:
    """What must be the same on every rank."""
    return () if ids is None else (("selected_ids (their checksum)", fingerprint(ids)),)


def with_selected_of_ranks(
    op: str,
    stats: TokenStats,
    columns: Callable[[Any], Any],
    ids: Any,
    mask: Any,
    head: LogitTransform,
    width: int,
    shard: Shard,
) -> TokenStats:
    """`with_selected` of ids of the whole vocabulary. `columns`: the logits of ids among this
    rank's; its bias has as many entries."""
    from logitless.ops.sharding.few import of_all_ranks, padded

    check_in_vocabulary(op, ids, shard.vocab(width))
    bias, dtype = head.bias, stats.lse.dtype

    def biased(own: Any) -> Any:
        x = columns(own).to(dtype)
        return x if bias is None else x + padded(bias, 0).index_select(0, own).to(dtype)

    raw = of_all_ranks(biased, ids, width, shard)
    return with_selected(stats, raw, ids, mask, changed(head, bias=None))


def with_selected(
    stats: TokenStats,
    raw: Any,  # [*targets.shape, K], the logits of the ids before the chain
    ids: Any,
    mask: Any,
    head: LogitTransform,
) -> TokenStats:
    """With `.selected`, [*targets.shape, K]; 0 outside the mask."""
    chain = _of_tensors if is_tensor(raw) else _of_arrays
    return stats._replace(selected=chain(raw, stats.lse, ids, mask, head))


def _of_tensors(raw: Any, lse: Any, ids: Any, mask: Any, head: LogitTransform) -> Any:
    from logitless.backends.row_kernels.eager import softcapped

    inside = None if mask is None else mask[..., None]
    # what lies outside the mask may be NaN, and 0 times that is no gradient
    x = raw if inside is None else raw.masked_fill(~inside, 0.0)
    x = x.to(lse.dtype)
    x = x if head.bias is None else x + head.bias.index_select(0, ids).to(lse.dtype)
    x = x * head.logit_scale
    x = x if head.softcap is None else softcapped(x, head.softcap)
    found = x / _column(head.temperature, lse.dtype) - lse[..., None]
    return found if inside is None else found.masked_fill(~inside, 0.0)


def _column(temperature: Any, dtype: Any) -> Any:
    single = isinstance(temperature, (int, float))
    return temperature if single else temperature.detach().to(dtype)[..., None]


def _of_arrays(raw: Any, lse: Any, ids: Any, mask: Any, head: LogitTransform) -> Any:
    x = raw.astype(lse.dtype)
    x = x if head.bias is None else x + head.bias[ids].astype(lse.dtype)
    x = x * head.logit_scale
    x = x if head.softcap is None else head.softcap * np.tanh(x / head.softcap)
    single = isinstance(head.temperature, (int, float))
    x = x / (head.temperature if single else head.temperature.astype(lse.dtype)[..., None])
    found = (x - lse[..., None]).astype(lse.dtype)
    return found if mask is None else np.where(mask[..., None], found, 0).astype(lse.dtype)
