"""Once per optimizer step: counts, means and selected tokens that all micro-batches share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from logitless import _core
from logitless.inputs.arrays import framework
from logitless.inputs.checks import instance, is_tensor, shown, whole
from logitless.inputs.make_tokens import Array, is_traced, make_tokens, refuse_grad, to_numpy
from logitless.inputs.naming import public
from logitless.inputs.sequences import whole_sequences
from logitless.inputs.tokens import Int64s, Tokens
from logitless.loss.evaluate.aggregation import Totals, count_totals
from logitless.loss.evaluate.selection import Reduce, one_rank, select, spec_means
from logitless.loss.spec import Control, Correction, PolicyLossSpec


class BatchStats(NamedTuple):
    """What `policy_loss(batch=...)` needs to know about the optimizer batch it is a part of."""

    totals: Totals
    mean_advantage: float
    mean_logp: float
    # valid tokens that the means are over
    count: int  # type: ignore[assignment]
    # int64, sorted: this rank's tokens among the selected ones of all ranks
    selected: Any
    seed: int
    step: int
    # what the statistics are for; policy_loss refuses a batch made for another one
    control: Control | None
    correction: Correction | None = None
    # of EntropyWeights, where A > 0 and where A < 0, and of a normalised correction
    mean_credit: tuple[float, float] = (0.0, 0.0)
    mean_importance: float = 1.0
    # int64 [S, 2]: smallest token id and valid tokens of each sequence of this rank, for losses
    # that need sequences whole; else [0, 2]
    sequences: Any = None


@public
def batch_stats(
    logp: Array,  # [N] or [B, T]
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,  # bool
    spec: PolicyLossSpec,
    *,
    old_logp: Array | None = None,
    entropy: Array | None = None,
    entropy_change: Array | None = None,
    rollout_logp: Array | None = None,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
    token_ids: Array,  # int64
    data_group: Any = None,
    seed: int,
    step: int,
) -> BatchStats:
    """Statistics and selection over the whole optimizer batch. In plain code, on one rank:

        cov = (advantages - advantages[mask].mean()) * (logp - logp[mask].mean())
        k = max(int(fraction * mask.sum()), 1)
        ClipCov     k at random among mask & (low < cov) & (cov < high) & ~clipped(logp - old_logp)
        KLCov       the k of mask with the largest cov
        TopEntropy  the k of mask with the largest entropy
        ClipB       mask & (A < 0) with S - S[mask].mean() < -mu * S[mask].std(correction=0)
        ClipV       the k of mask & (A < 0) with the largest entropy_change > mu * its std

    Give it all micro-batches of this rank at once: `logp` is old_logp (free), or a scoring without
    gradient under the current weights (exact after the first update); with `old_logp` given as
    well, tokens clipped there are no candidates of Clip-Cov. With `data_group` (a torch.distributed
    group) sums, counts and histograms are added over its ranks, all of which have to call; None is
    one rank.

    The same input bits select the same tokens on any number of ranks and micro-batches, in any
    order: sums are exact and round once, equal scores go to the smaller token id, and the
    random order is Philox of (seed, step, token id). `token_ids`: see `token_ids()`. Selection per
    call (scope="micro") leaves `selected` empty.

    Where the loss is per sequence the result also knows the sequences, so that policy_loss can tell
    one that a micro-batch cuts. `entropy_change` (an extra of the statistics ops) is for ClipV,
    `rollout_logp` for a correction with normalize=True; there old_logp is `old_logp`, or logp
    where that is None.

    Raises ValueError where a valid value is not finite, token ids repeat, or entropy or cu_seqlens
    is missing; TypeError for a wrong dtype. Papers: arXiv:2505.22617 (covariance), arXiv:2506.01939
    (entropy).
    """
    optional = {
        "old_logp": old_logp,
        "entropy": entropy,
        "entropy_change": entropy_change,
        "rollout_logp": rollout_logp,
        "cu_seqlens": cu_seqlens,
    }
    given = {"logp": logp, "advantages": advantages, "mask": mask, "token_ids": token_ids}
    framework("batch_stats", optional, mixed=True, **given)
    refuse_grad(**given, **optional)
    instance("spec", spec, (PolicyLossSpec,))
    seed, step = (whole(k, x, below=1 << 64) for k, x in (("seed", seed), ("step", step)))
    if is_traced(logp):
        from logitless.ops.losses.untraced import untraced

        stats: BatchStats = untraced(
            batch_stats,
            logp, advantages, mask, spec, old_logp=old_logp, entropy=entropy,
            entropy_change=entropy_change, rollout_logp=rollout_logp, cu_seqlens=cu_seqlens,
            token_ids=token_ids, data_group=data_group, seed=seed, step=step,
        )  # fmt: skip
        return stats
    tokens = make_tokens(
        logp,
        advantages,
        mask,
        old_logp=old_logp,
        entropy=entropy,
        entropy_change=entropy_change,
        rollout_logp=rollout_logp,
        cu_seqlens=cu_seqlens,
        token_ids=token_ids,
    )
    if spec.per_sequence:
        tokens.whole()
    check_ids(tokens)
    reduce = reduction(data_group)
    local = count_totals(tokens)
    totals = Totals(*(int(x) for x in reduce(np.array([*local[:2], 1], np.int64))))
    means = spec_means(tokens, spec, reduce)
    selected: Any = np.empty(0, np.int64)
    if spec.selects:
        selected = select(tokens, spec, means, seed=seed, step=step, reduce=reduce)
    sequences: Any = np.empty((0, 2), np.int64)
    if spec.per_sequence:
        sequences = whole_sequences(tokens)
    if is_tensor(logp):
        import torch

        selected = torch.from_numpy(selected).to(logp.device)
        sequences = torch.from_numpy(sequences).to(logp.device)
    return BatchStats(
        totals,
        means.advantage,
        means.logp,
        means.tokens,
        selected,
        seed,
        step,
        spec.control,
        spec.correction,
        means.credit,
        means.importance,
        sequences,
    )


@public
def token_ids(
    sequence_ids: Array,  # [B], [B, 1] or the shape of positions
    positions: Array,  # [T], [B, T] or [N]
    max_length: int,
) -> Any:
    """sequence_ids * max_length + positions, int64: unique, and stable under any reordering.

    Number the sequences of the whole batch over all ranks (by prompt and sample, say), and
    positions within each. [B] with [T] or [B, T] gives [B, T]. Raises ValueError for a negative
    sequence id, a position outside [0, max_length), or ids beyond int64; TypeError unless both are
    integers.
    """
    max_length = whole("max_length", max_length, least=1)
    framework("token_ids", mixed=True, sequence_ids=sequence_ids, positions=positions)
    if is_traced(sequence_ids):
        from logitless.ops.losses.data_ops import traced_ids

        ids: Array = traced_ids(sequence_ids, positions, max_length)
        return ids
    sequences, places = (
        to_numpy(name, x)
        for name, x in {"sequence_ids": sequence_ids, "positions": positions}.items()
    )
    for name, x in {"sequence_ids": sequences, "positions": places}.items():
        if x.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got {shown(x)}")
    if sequences.ndim == 1 and (places.ndim == 2 or places.shape != sequences.shape):
        sequences = sequences[:, None]
    if not _fit(sequences.shape, places.shape):
        raise ValueError(
            f"sequence_ids must be [B], [B, 1] or the shape of positions, {list(places.shape)}, "
            f"got {list(sequence_ids.shape)}"
        )
    if places.size and not (places.min() >= 0 and places.max() < max_length):
        raise ValueError(
            f"positions must be in [0, max_length) = [0, {max_length}), "
            f"got {places.min()} to {places.max()}"
        )
    if sequences.size and not (sequences.min() >= 0 and sequences.max() < 2**63 // max_length):
        raise ValueError(
            "sequence_ids must be in [0, 2^63 / max_length), "
            f"got {sequences.min()} to {sequences.max()}"
        )
    ids = sequences.astype(np.int64) * np.int64(max_length) + places.astype(np.int64)
    if is_tensor(sequence_ids):
        import torch

        return torch.from_numpy(ids).to(sequence_ids.device)
    return ids


def _fit(sequences: tuple[int, ...], places: tuple[int, ...]) -> bool:
    """[B, 1] with [T] or [B, T], or of one shape."""
    if sequences == places:
        return len(places) in (1, 2)
    column = len(sequences) == 2 and sequences[1] == 1
    return column and (len(places) == 1 or (len(places) == 2 and sequences[0] == places[0]))


def reduction(group: Any) -> Reduce:
    """Adds int64 arrays over the ranks of a torch.distributed group; None: this process alone."""
    if group is None:
        return one_rank
    import torch
    import torch.distributed as dist

    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "data_group must be a torch.distributed process group that this rank is in, "
            f"got {shown(group)}"
        )
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"

    def reduce(values: Int64s) -> Int64s:
        total = torch.from_numpy(values).to(device, copy=True)
        dist.all_reduce(total, group=group)
        return np.asarray(total.cpu().numpy())

    return reduce


def check_ids(tokens: Tokens) -> None:
    repeated = _core.tokens.repeated_id(tokens.ids, tokens.mask, tokens.threads)
    if repeated is not None:
        raise ValueError(
            "token_ids must be unique and not negative where the mask is true, got "
            + (f"{repeated} twice" if repeated >= 0 else str(repeated))
        )
