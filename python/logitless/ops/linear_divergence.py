"""Public op: a student's divergence from a teacher, of two heads without the logits of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.adapter import adapter_kind, check_adapters
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, check_names
from logitless.ops.head.parse import check_masked_head, under_autocast
from logitless.ops.sharding.rendezvous import ShardRendezvous, tail
from logitless.ops.teacher.noise import check_noise, noise_arrays
from logitless.ops.teacher.outputs import EXTRAS, Divergence, to_divergence
from logitless.ops.teacher.parse import Heads, check_measure, check_pair_heads

if TYPE_CHECKING:
    from logitless.inputs.sampling_mask import SamplingMask


@public
def linear_divergence(
    hidden: Any,  # [N, H] or [B, T, H]
    weight: Any,  # [V, H]
    teacher_hidden: Any,  # [N, G] or [B, T, G]
    teacher_weight: Any,  # [V, G]
    mask: Any = None,  # bool or 0 and 1, [N] or [B, T]
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    sampling_mask: SamplingMask | None = None,
    temperature: Any = 1.0,  # float, or shaped like mask, or [B] or [B, 1] of sequences
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,  # [V]
    adapter: Any = None,  # of the student: (A [r, H], B [V, r], scale), or a list of such
    teacher_temperature: Any = None,  # as temperature; None: the same
    teacher_softcap: float | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_bias: Any = None,  # [V]
    teacher_noise: Any = 0.0,  # float, or shaped like mask
    seed: int | None = None,
    step: int = 0,
    row_ids: Any = None,  # int64, shaped like mask
    extras: tuple[str, ...] = (),
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    logits_dtype: Any = None,
    weight_grad: str = "dense",
    active_capacity: int | None = None,
    backend: str = "auto",
) -> Divergence:
    """Full-vocabulary distillation straight from what both heads are given.

    Equivalent plain code::

        divergence(hidden @ weight.T, teacher_hidden @ teacher_weight.T, mask, ...)

    without ever holding `[tokens, V]` of either: tiles of the same vocabulary columns of both are
    made, folded into each row's sums and overwritten. First derivatives with respect to hidden,
    weight and bias, by one backward per forward; they are exact, summed in float32. Only requested
    gradients are computed, rows outside the mask enter no product, and rows whose upstream
    gradients are zero enter no backward product.

    Hidden sizes may differ, the vocabulary is one. A head that is padded to more rows is cut,
    `weight[:vocab]`, which is a view; or its padding gets a bias of -inf, then it counts nothing
    where both heads exclude it, and see `divergence` where one does.

    memory_budget: bytes or "256MiB" for both heads, half of it for each; None is twice what
        `linear_token_stats` takes. Logits that fit are kept for the backward, 4 products in all
        instead of 6; "jsd" takes a second pass over them, and another 2 products where they are not
        kept.
    logits_dtype: as in `linear_token_stats`, of both heads.

    sampling_mask: as in `divergence`. A row that has a set costs products with its tokens' rows of
        both weights alone, or where sets are large a dense product, as in `linear_token_stats`.
    weight_grad: as there, "rows" gives d_weight as a sparse tensor of the rows of weight that are
        in a set. It needs a sampling_mask with a set for every row of the mask.

    adapter: as in `linear_token_stats`, of the student's head: its logits are those of the weight
        W + scale * B A, no [V, H] beside weight is ever made, A and B have gradients. A teacher's
        adapters are data: merge them into teacher_weight.

    active_capacity: as in `linear_token_stats`, the most rows that the mask may hold: on a device
        forward and backward take so many, nothing waits, and a CUDA graph can hold them. Not with a
        sampling_mask.

    vocab_group, vocab_start: as in `linear_token_stats`, for the rows of both weights.

    kind, beta, teacher_noise, extras, results, the other options and errors as in `divergence`;
    hidden and weight share one floating dtype, teacher_hidden and teacher_weight one as well.
    docs/distillation.md has an example. NumPy inputs: forward only.
    """
    op = "linear_divergence"

    def call_kind() -> tuple[Any, ...]:
        return (
            tail(hidden), tail(weight, 2), tail(teacher_hidden), tail(teacher_weight, 2), kind,
            beta, sampling_mask, temperature, softcap, logit_scale, bias, teacher_temperature,
            teacher_softcap, teacher_logit_scale, teacher_bias, teacher_noise, row_ids, extras,
            memory_budget, str(logits_dtype), active_capacity, backend, adapter_kind(adapter),
        )  # fmt: skip

    ranks = ShardRendezvous(op, vocab_group, vocab_start, call_kind)
    with ranks:
        weight, bias = ranks.local("weight", weight), ranks.local("bias", bias)
        teacher_weight = ranks.local("teacher_weight", teacher_weight)
        teacher_bias = ranks.local("teacher_bias", teacher_bias)
        heads = Heads.of(
            (temperature, softcap, logit_scale, bias),
            (teacher_temperature, teacher_softcap, teacher_logit_scale, teacher_bias),
        )
        compute = ComputeOptions(
            memory_budget, logits_dtype=logits_dtype, backend=backend,
            active_capacity=active_capacity,
        )  # fmt: skip
        beta = check_measure(kind, beta)
        extras = check_names("extras", extras, EXTRAS)
        mask = as_mask(mask)
        hidden, weight = under_autocast(hidden, weight)
        teacher_hidden, teacher_weight = under_autocast(teacher_hidden, teacher_weight)
        arrays = (hidden, weight, teacher_hidden, teacher_weight)
        of_noise = noise_arrays(teacher_noise, row_ids)
        framework, shape = check_pair_heads(
            op, arrays, mask, heads, of_noise, sharded=ranks.sharded
        )
        noise = check_noise(op, teacher_noise, seed, step, row_ids, mask, shape)
        heads = heads.on_rows(shape)
        adapters = check_adapters(op, adapter, hidden, weight, ranks.local)
        if sampling_mask is not None or type(weight_grad) is not str or weight_grad != "dense":
            check_masked_head(op, sampling_mask, weight, shape, compute, weight_grad)
        hidden, teacher_hidden = (x.reshape(-1, x.shape[-1]) for x in (hidden, teacher_hidden))
        if framework == "numpy":
            from logitless.ops.teacher.numpy_rows import numpy_linear_divergence

            check_numpy_backend(op, backend)
            ranks.refuse_numpy()
            both = (hidden, weight), (teacher_hidden, teacher_weight)
            found = numpy_linear_divergence(
                op, *both, mask, heads, kind, beta, compute, sampling_mask, noise, adapters
            )
            return to_divergence(found, shape, extras)
        import torch

        from logitless.backends import registry
        from logitless.ops.head.adapter.low_rank import low_rank
        from logitless.ops.head.inputs import of_a_graph, refuse_capacity
        from logitless.ops.rows.masked import mask_facts
        from logitless.ops.teacher.calls import Pair, facts_of_student, pair_facts
        from logitless.ops.torch_op import backend_of

        name = backend_of(backend, hidden)
        registry.get(name).require(
            op, linear_divergence=True, vocab_group=ranks.sharded,
            sampling_mask=sampling_mask is not None, teacher_noise=noise is not None,
            weight_grad=weight_grad == "rows", active_capacity=active_capacity,
        )  # fmt: skip
        if sampling_mask is not None:
            refuse_capacity(op, compute, "a sampling_mask")
        else:
            compute = of_a_graph(compute, hidden.device, len(hidden))
        pair = Pair.of(op, heads, mask, hidden, kind, beta, name, noise)
        differentiated = torch.is_grad_enabled()
        of_hidden, of_weight, of_bias = (
            differentiated and x is not None and x.requires_grad for x in (hidden, weight, bias)
        )
        low = None
        if adapters:
            low = low_rank(op, adapters, hidden, pair.mask, compute, ranks.reduces_hidden)
            of_hidden = of_hidden or low.needs
        needs = (of_hidden, of_weight, of_bias)
        both = (hidden, weight), (teacher_hidden, teacher_weight)
        student, teacher = pair.heads(*both, compute, needs, low)
    shard = ranks.shard(
        int(weight.shape[0]),
        lambda: (
            *pair_facts(heads, hidden, pair, shape), *facts_of_student(student),
            *mask_facts(sampling_mask), *(() if noise is None else noise.facts),
        ),
    )  # fmt: skip
    if sampling_mask is None:
        return to_divergence(pair.of_heads(student, teacher, shard), shape, extras)
    from logitless.ops.teacher.masked import masked_of_heads

    rows = weight_grad == "rows"
    found = masked_of_heads(pair, student, teacher, sampling_mask, shard, weight_rows=rows)
    return to_divergence(found, shape, extras)
