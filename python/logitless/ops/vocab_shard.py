"""Public: a shard of a vocabulary, made once and passed as `vocab_group`."""

from __future__ import annotations

from typing import Any

from logitless.inputs.checks import flag, is_tensor, shown, whole
from logitless.inputs.naming import public
from logitless.ops.sharding.vocab_shard import VocabShard

_OP = "vocab_shard"


@public
def vocab_shard(
    group: Any,
    weight: Any,  # [V of this rank, H]
    *,
    vocab_start: int | None = None,
    reduce_hidden: bool = True,
) -> VocabShard:
    """Which columns of the vocabulary each rank of a group holds.

    Equivalent plain code::

        widths = all_gather(len(weight), group)
        start = sum(widths[:rank])          # or vocab_start
        shard = (group, start, start + len(weight))

    The result is passed as `vocab_group=` to `token_stats`, `linear_token_stats`,
    `linear_policy_loss` and `linear_sample`, in place of the group and `vocab_start`. Collective:
    every rank of the group makes the call. Ranks may hold different numbers of columns, or none.

    weight: this rank's rows of the head, or a DTensor that is Shard(0) over the group; of given
        logits a tensor with as many rows as they have columns.
    vocab_start: the vocabulary id of the first row; None: rows follow each other in the order of
        ranks.
    reduce_hidden: False leaves d_hidden this rank's share of the sum over ranks, where the
        model adds the shares up itself, as Megatron's sequence parallelism does.

    Raises TypeError for what is no process group or no matrix, and ValueError on every rank where
    the shards leave a gap or overlap.
    """
    from logitless.ops.sharding.rendezvous import ShardRendezvous

    flag("reduce_hidden", reduce_hidden)
    if group is None:
        raise TypeError(f"group must be a torch.distributed process group, got {shown(group)}")
    # The ranges are not known yet, so this call exchanges them, whatever was agreed on before.
    ranks = ShardRendezvous(_OP, group, 0)
    ranks.known = None
    with ranks:
        local = ranks.local("weight", weight)
        if not is_tensor(local) or local.ndim != 2:
            raise TypeError(
                f"weight must be a torch tensor [V of this rank, H], got {shown(weight)}"
            )
        width = int(local.shape[0])
        start = ranks.start if vocab_start is None else whole("vocab_start", vocab_start)
    if vocab_start is None and local is weight:
        start = _start_in_order(ranks.group, width)
    ranks.start = start
    found = ranks.shard(width, lambda: (("reduce_hidden", reduce_hidden),))
    return VocabShard(group, start, start + width, tuple(found.ranges), reduce_hidden)


def _start_in_order(group: str, width: int) -> int:
    import torch
    import torch.distributed as dist

    from logitless.ops.sharding.shard import process_group

    process = process_group(group)
    device = "cuda" if dist.get_backend(process) == "nccl" else "cpu"
    own = torch.tensor([width], device=device)
    widths = [torch.zeros_like(own) for _ in range(process.size())]
    dist.all_gather(widths, own, group=process)
    return int(sum(int(x) for x in widths[: process.rank()]))
