"""Public op: a student's divergence from a teacher, of two heads without the logits of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, check_names
from logitless.inputs.sampling_mask import check_sampling_mask
from logitless.ops.head.parse import under_autocast
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
            memory_budget, str(logits_dtype), backend,
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
        compute = ComputeOptions(memory_budget, logits_dtype=logits_dtype, backend=backend)
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
        if sampling_mask is not None:
            check_sampling_mask(sampling_mask, shape)
        hidden, teacher_hidden = (x.reshape(-1, x.shape[-1]) for x in (hidden, teacher_hidden))
        if framework == "numpy":
            from logitless.ops.teacher.numpy_rows import numpy_linear_divergence

            check_numpy_backend(op, backend)
            ranks.refuse_numpy()
            both = (hidden, weight), (teacher_hidden, teacher_weight)
            found = numpy_linear_divergence(
                op, *both, mask, heads, kind, beta, compute, sampling_mask, noise
            )
            return to_divergence(found, shape, extras)
        import torch

        from logitless.backends import registry
        from logitless.ops.rows.masked import mask_facts
        from logitless.ops.teacher.calls import Pair, facts_of_needs, logits_dtypes, pair_facts
        from logitless.ops.torch_op import backend_of

        name = backend_of(backend, hidden)
        registry.get(name).require(
            op, linear_divergence=True, vocab_group=ranks.sharded,
            sampling_mask=sampling_mask is not None, teacher_noise=noise is not None,
        )  # fmt: skip
        pair = Pair.of(op, heads, mask, hidden, kind, beta, name, noise)
        differentiated = torch.is_grad_enabled()
        of_hidden, of_weight, of_bias = (
            differentiated and x is not None and x.requires_grad for x in (hidden, weight, bias)
        )
        needs = (of_hidden, of_weight, of_bias)
        dtypes = logits_dtypes(compute.logits_dtype, hidden, teacher_hidden)
    shard = ranks.shard(
        int(weight.shape[0]),
        lambda: (
            *pair_facts(heads, hidden, pair, shape), *facts_of_needs(needs, compute),
            *mask_facts(sampling_mask), *(() if noise is None else noise.facts),
        ),
    )  # fmt: skip
    student, teacher = (hidden, weight), (teacher_hidden, teacher_weight)
    given = student, teacher, dtypes, compute, needs
    if sampling_mask is None:
        return to_divergence(pair.of_heads(*given, shard), shape, extras)
    from logitless.ops.teacher.masked import masked_of_heads

    return to_divergence(masked_of_heads(pair, *given, sampling_mask, shard), shape, extras)
