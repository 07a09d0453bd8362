"""Once per optimizer step: counts, means and selected tokens that all micro-batches share."""

from __future__ import annotations

from typing import Any

from logitless.backends import registry
from logitless.backends.token_kernels.arrays import tensor_like
from logitless.backends.token_kernels.protocol import Reduce
from logitless.inputs.arrays import framework
from logitless.inputs.checks import instance, is_tensor, whole
from logitless.inputs.gradients import is_traced, refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array, Number, Tokens
from logitless.loss.evaluate.aggregation import count_sequences
from logitless.loss.evaluate.inputs import BatchStats, Means, Totals
from logitless.loss.evaluate.make_tokens import make_ids, make_tokens, name_flagged
from logitless.loss.evaluate.means import reduction
from logitless.loss.evaluate.micro_batches import joined, micro_batches
from logitless.loss.evaluate.selection import check_ids, select
from logitless.loss.evaluate.sequences import whole_sequences
from logitless.loss.evaluate.surveys import spec_means
from logitless.loss.spec import PolicyLossSpec


@public
def batch_stats(
    logp: Array,  # [N] or [B, T]; or a list of such, and so all arrays
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,  # bool, or integers 0 and 1
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
        M2po, Bapo  bounds of logp - old_logp for the clip, as their docstrings have them
        Steer       least and largest x, as its docstring has it
        Siren       mean entropy of the tokens it chooses, .selected_entropy
        Entropic    share of mask with logp > log(threshold)

    Give it all micro-batches of this rank at once: as whole arrays, or as lists with one array a
    micro-batch, each padded or packed on its own (places in messages then count through all their
    tokens). `logp` is old_logp (free), or a scoring without
    gradient under the current weights (exact after the first update); with `old_logp` given as
    well, tokens clipped there are no candidates of Clip-Cov. A clip that the batch chooses (M2po,
    Bapo), Steer, Siren and Entropic look at the policy of now: they want that scoring and old_logp.

    With `data_group` (a torch.distributed group) sums, counts and histograms are added over its
    ranks, all of which have to call with arrays on one kind of device; None is one rank.

    CUDA tensors (AMD's too) stay on the device, with the numbers that follow from them
    (`BatchStats`): the host waits for nothing, except in a group that is gloo's, and what would be
    an error of a value is raised by a later call. Values beyond 2^256 there, or all below 2^-256,
    are not scaled.

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
    parts = micro_batches(given, optional)
    for part in parts:
        framework("batch_stats", {k: part[k] for k in optional}, mixed=True,
                  **{k: part[k] for k in given})  # fmt: skip
        refuse_grad(**part)
    first = parts[0]["logp"]
    instance("spec", spec, (PolicyLossSpec,))
    seed, step = (whole(k, x, below=1 << 64) for k, x in (("seed", seed), ("step", step)))
    if is_traced(first):
        from logitless.inputs.untraced import untraced

        stats: BatchStats = untraced(
            batch_stats,
            logp, advantages, mask, spec, old_logp=old_logp, entropy=entropy,
            entropy_change=entropy_change, rollout_logp=rollout_logp, cu_seqlens=cu_seqlens,
            token_ids=token_ids, data_group=data_group, seed=seed, step=step,
        )  # fmt: skip
        return stats
    name_flagged(first)
    kernels = registry.token_kernels_of(first, custom=spec.custom)
    tokens = joined([
        make_tokens(**{**part, "mask": as_mask(part["mask"])}, kernels=kernels) for part in parts
    ])  # fmt: skip
    if spec.per_sequence:
        tokens.require_sequences()
    check_ids(tokens)
    reduce, xp = reduction(data_group, kernels), kernels.xp
    means = spec_means(tokens, spec, reduce)
    totals = _totals(tokens, means.tokens, data_group, reduce)
    selected = xp.cast(xp.zeros((0,), tokens.logp), xp.int64)
    if spec.selects:
        selected = select(tokens, spec, means, seed=seed, step=step, reduce=reduce)
    sequences = xp.cast(xp.zeros((0, 2), tokens.logp), xp.int64)
    if spec.per_sequence:
        sequences = whole_sequences(tokens)
    number = means.tokens
    if not kernels.on_host:
        means = Means.from_numbers(xp.numbers(xp.vector(tuple(means.numbers), tokens.logp)))
    elif is_tensor(first):
        selected, sequences = (tensor_like(x, first) for x in (selected, sequences))
    kernels.done("batch_stats")
    return BatchStats(
        totals,
        means.advantage,
        means.logp,
        number,
        selected,
        seed,
        step,
        spec.control,
        spec.correction,
        means.credit,
        means.importance,
        sequences,
        means.log_bounds,
        spec.batch_clip,
        means.change_range,
        means.likely,
        means.selected_entropy,
    )


def _totals(tokens: Tokens, number: Number, data_group: Any, reduce: Reduce) -> Totals:
    """number: of the valid tokens of all ranks."""
    xp, ranks = tokens.xp, 1 if data_group is None else data_group.size()
    sequences = reduce(count_sequences(tokens))
    # not the constructor, which reads what is on a device
    return Totals._make([number, *xp.numbers(sequences), ranks])


@public
def token_ids(
    sequence_ids: Array,  # [B], [B, 1] or the shape of positions
    positions: Array,  # [T], [B, T] or [N]
    max_length: int,
) -> Any:
    """sequence_ids * max_length + positions, int64: unique, and stable under any reordering.

    Number the sequences of the whole batch over all ranks (by prompt and sample, say), and
    positions within each. [B] with [T] or [B, T] gives [B, T]. Raises ValueError for a negative
    sequence id, a position outside [0, max_length), or ids beyond int64; on a device, where nobody
    waits for them, their ids are -1, which batch_stats refuses inside the mask. TypeError unless
    both are integers.
    """
    max_length = whole("max_length", max_length, least=1)
    framework("token_ids", mixed=True, sequence_ids=sequence_ids, positions=positions)
    if is_traced(sequence_ids):
        from logitless.ops.losses.data_ops import traced_ids

        ids: Array = traced_ids(sequence_ids, positions, max_length)
        return ids
    return make_ids(sequence_ids, positions, max_length)
