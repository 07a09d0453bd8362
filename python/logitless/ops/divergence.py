"""Public op: a student's divergence from a teacher, of given logits of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import check_names
from logitless.inputs.sampling_mask import check_sampling_mask
from logitless.ops.sharding.rendezvous import ShardRendezvous, tail
from logitless.ops.teacher.noise import check_noise, noise_arrays
from logitless.ops.teacher.outputs import EXTRAS, Divergence, to_divergence
from logitless.ops.teacher.parse import Heads, check_measure, check_pair_logits

if TYPE_CHECKING:
    from logitless.inputs.sampling_mask import SamplingMask


@public
def divergence(
    logits: Any,  # [N, V] or [B, T, V]
    teacher_logits: Any,  # [N, V] or [B, T, V]
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
    backend: str = "auto",
) -> Divergence:
    """How far the student's distribution of each token is from the teacher's.

    Equivalent plain code, p of the student and q of the teacher::

        log_p = chain(logits).log_softmax(-1)                    # see token_stats
        log_q = teacher_chain(teacher_logits).log_softmax(-1)
        reverse_kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        forward_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        log_m = logaddexp(log(1 - beta) + log_p, log(beta) + log_q)
        jsd = (1 - beta) * KL(p || m) + beta * KL(q || m)
        entropy = -(log_p.exp() * log_p).sum(-1)

    kind: "reverse_kl" = KL(p || q), "forward_kl" = KL(q || p) or "jsd", the generalised
        Jensen-Shannon divergence of 0 < beta < 1 with the mix m = (1 - beta) p + beta q ("On-Policy
        Distillation of Language Models", 2023).

    Both have one vocabulary. A token that a distribution gives no mass, a logit of -inf or one too
    low for float32, adds nothing to what is weighted by it, and one that neither gives any is as if
    it were not there; where q has none and p has, reverse_kl is inf, where p has none and q has,
    forward_kl is. The gradient of forward_kl and jsd stays finite there, that of reverse_kl is NaN.

    sampling_mask: `SamplingMask` of the tokens that each row could be sampled as. Both softmaxes
        are renormalised over them, and with them divergence, entropies and extras. Without its own
        normaliser the teacher would add -log of its mass in the set to reverse_kl, which has no
        gradient. A row with an empty set has the whole vocabulary, as ever. An id outside the
        vocabulary and one that comes twice are errors.

    teacher_noise: standard deviation of normal noise that is added to the teacher's z, a number or
        one per token: teacher_z + teacher_noise * normal. The noise is Philox of (seed, step,
        row_ids[i], token), so it is the same in every call, tiling and rank that has the row; give
        every token of a batch a row id of its own (`token_ids`). Noise on soft targets and a
        teacher_temperature per token keep private tokens of a teacher's data from its student
        ("Swing Distillation", arXiv:2212.08349, of which the abstract was read).

    `.divergence` and `.entropy` have first derivatives with respect to logits and bias. The
    teacher's arrays are data: they get no gradient, whatever requires one.
    extras: "reverse_kl" and "forward_kl", which cost nothing more; not differentiable.

    mask, the chain of each (temperature, softcap, logit_scale, bias), vocab_group, vocab_start,
    backend, dtypes and errors as in `token_stats`; logits may differ in dtype, but for float64. The
    kernels run on the CPU and on CUDA devices; backend="torch" is plain torch anywhere. NumPy
    inputs: forward only.
    """
    op = "divergence"

    def call_kind() -> tuple[Any, ...]:
        return (
            tail(logits), tail(teacher_logits), kind, beta, sampling_mask, temperature, softcap,
            logit_scale, bias, teacher_temperature, teacher_softcap, teacher_logit_scale,
            teacher_bias, teacher_noise, row_ids, extras, backend,
        )  # fmt: skip

    ranks = ShardRendezvous(op, vocab_group, vocab_start, call_kind)
    with ranks:
        bias = ranks.local("bias", bias)
        teacher_bias = ranks.local("teacher_bias", teacher_bias)
        heads = Heads.of(
            (temperature, softcap, logit_scale, bias),
            (teacher_temperature, teacher_softcap, teacher_logit_scale, teacher_bias),
        )
        beta = check_measure(kind, beta)
        extras = check_names("extras", extras, EXTRAS)
        mask = as_mask(mask)
        framework, shape = check_pair_logits(
            op, logits, teacher_logits, mask, heads, noise_arrays(teacher_noise, row_ids),
            sharded=ranks.sharded,
        )  # fmt: skip
        noise = check_noise(op, teacher_noise, seed, step, row_ids, mask, shape)
        heads = heads.on_rows(shape)
        if sampling_mask is not None:
            check_sampling_mask(sampling_mask, shape)
        if framework == "numpy":
            from logitless.ops.teacher.numpy_rows import numpy_divergence

            check_numpy_backend(op, backend)
            ranks.refuse_numpy()
            arrays = logits, teacher_logits
            found = numpy_divergence(op, *arrays, mask, heads, kind, beta, sampling_mask, noise)
            return to_divergence(found, shape, extras)
        from logitless.backends import registry
        from logitless.ops.rows.masked import mask_facts
        from logitless.ops.teacher.calls import Pair, pair_facts
        from logitless.ops.torch_op import backend_of

        name = backend_of(backend, logits)
        registry.get(name).require(
            op, divergence=True, vocab_group=ranks.sharded,
            sampling_mask=sampling_mask is not None, teacher_noise=noise is not None,
        )  # fmt: skip
        pair = Pair.of(op, heads, mask, logits, kind, beta, name, noise)
    shard = ranks.shard(
        int(logits.shape[-1]),
        lambda: (
            *pair_facts(heads, logits, pair, shape), *mask_facts(sampling_mask),
            *(() if noise is None else noise.facts),
        ),
    )  # fmt: skip
    if sampling_mask is None:
        return to_divergence(pair.of_logits(logits, teacher_logits, shard), shape, extras)
    from logitless.ops.teacher.masked import masked_of_logits

    found = masked_of_logits(pair, logits, teacher_logits, sampling_mask, shard)
    return to_divergence(found, shape, extras)
