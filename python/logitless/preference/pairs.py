"""Losses of a chosen and a rejected answer, from their log-probs."""

from __future__ import annotations

from logitless.advantages.arguments import demand
from logitless.inputs.checks import choice, finite, nonsense, positive, require
from logitless.inputs.naming import public
from logitless.inputs.tokens import Array
from logitless.preference.arguments import given_floats, on_host
from logitless.preference.forms import DIVERGENCES, FORMS, Form, Pairs


@public
def dpo(
    chosen_logp: Array,  # [B], of whole sequences: sequence_logp
    rejected_logp: Array,  # [B]
    ref_chosen_logp: Array | None = None,  # [B], data
    ref_rejected_logp: Array | None = None,  # [B], data
    *,
    form: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
    tau: float = 0.05,
) -> Array:  # [B]
    """Direct preference optimisation, a loss for each pair of answers. In plain code, of the
    default form:

        margin = (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)
        won, lost = logsigmoid(beta * margin), logsigmoid(-beta * margin)
        -(1 - label_smoothing) * won - label_smoothing * lost

    `form` is a row of `FORMS`, named as in TRL; label_smoothing, the share of labels that are
    flipped, goes with those that say so. `divergence`, a row of `DIVERGENCES`, makes the margin of
    the forms that are functions of it alone; alpha is the alpha_divergence's, tau discopop's.
    Log-probs are in nats, sums or averages over tokens. Without both references the log-ratios are
    the policy's log-probs. Differentiable in chosen_logp and rejected_logp, also where the policy
    is the reference; float64 where chosen_logp is, else float32, computed in float64. NumPy arrays
    or torch tensors; a device is waited for by nothing.

    Raises ValueError for shapes that differ, options that make no sense together, references that
    require a gradient and, on the CPU, values that are not finite; TypeError for dtypes. Paper:
    arXiv:2305.18290; f-divergences arXiv:2309.16240; those of the forms are in `FORMS`.
    """
    choice("form", form, FORMS)
    choice("divergence", divergence, DIVERGENCES)
    row = FORMS[form]
    positive("beta", beta)
    positive("tau", tau)
    finite("alpha", alpha)
    _check_smoothing(form, row, label_smoothing)
    if divergence != "reverse_kl" and not row.of_margin:
        raise nonsense(f"form={form!r}", f"divergence={divergence!r}", "its margin has no part")
    if (ref_chosen_logp is None) != (ref_rejected_logp is None):
        missing = "ref_chosen_logp" if ref_chosen_logp is None else "ref_rejected_logp"
        raise ValueError(f"{missing} must be given where the other reference is, got None")
    references = {"ref_chosen_logp": ref_chosen_logp, "ref_rejected_logp": ref_rejected_logp}
    given = given_floats(
        "dpo",
        "[B]",
        {"chosen_logp": chosen_logp, "rejected_logp": rejected_logp, **references},
        data=tuple(references),
    )
    xp, logp, score = given.xp, given.values, DIVERGENCES[divergence].score
    c, r = logp["chosen_logp"], logp["rejected_logp"]
    ref_c, ref_r = (logp.get(name, 0.0 * xp.data(c)) for name in references)
    chosen, rejected = c - ref_c, r - ref_r
    margin = score(xp, chosen, alpha) - score(xp, rejected, alpha)
    return given.result(
        row.loss(
            Pairs(xp, chosen, rejected, margin, c - r, ref_c - ref_r, beta, label_smoothing, tau)
        )
    )


@public
def ipo(
    chosen_logp: Array,  # [B]
    rejected_logp: Array,  # [B]
    ref_chosen_logp: Array | None = None,  # [B], data
    ref_rejected_logp: Array | None = None,  # [B], data
    *,
    beta: float = 0.1,
) -> Array:  # [B]
    """Identity preference optimisation. In plain code:

        margin = (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)
        (margin - 1 / (2 * beta)) ** 2

    It is `dpo` with form="ipo", where all else is said. Paper: arXiv:2310.12036.
    """
    return dpo(
        chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, form="ipo", beta=beta
    )


@public
def cpl(
    chosen_logp: Array,  # [B], of segments: sequence_logp, with its discount
    rejected_logp: Array,  # [B]
    preference: Array | None = None,  # [B] in [0, 1], data
    *,
    alpha: float = 0.1,
    bias: float = 0.5,
) -> Array:  # [B]
    """Contrastive preference learning: the log-probs of two segments are their advantages. In
    plain code:

        a, b = alpha * chosen_logp, alpha * rejected_logp
        -preference * logsigmoid(a - bias * b) - (1 - preference) * logsigmoid(b - bias * a)

    No reference is needed. A segment is any part of an answer, its log-prob
    `sequence_logp(logp, mask, discount=gamma)`. preference is the share of judges that chose the
    chosen one, None is 1. bias in (0, 1] below 1 keeps the loss from being lowered by making both
    segments improbable. Result, dtypes and errors as in `dpo`. Paper: arXiv:2310.13639.
    """
    positive("alpha", alpha)
    require("bias", bias, lambda x: 0.0 < x <= 1.0, "in (0, 1]")
    arrays = {
        "chosen_logp": chosen_logp, "rejected_logp": rejected_logp, "preference": preference
    }  # fmt: skip
    given = given_floats("cpl", "[B]", arrays, data=("preference",))
    xp = given.xp
    a, b = alpha * given.values["chosen_logp"], alpha * given.values["rejected_logp"]
    loss = -xp.log_sigmoid(a - bias * b)
    if preference is not None:
        share = given.values["preference"]
        if on_host(share):
            demand(xp, "preference", share, (share >= 0) & (share <= 1), "in [0, 1]")
        loss = share * loss - (1 - share) * xp.log_sigmoid(b - bias * a)
    return given.result(loss)


def _check_smoothing(form: str, row: Form, smoothing: float) -> None:
    if row.smoothing is None:
        require("label_smoothing", smoothing, lambda x: x == 0.0, f"0 with form={form!r}")
        return
    low, below = row.smoothing
    end = "(0" if low > 0 else "[0"
    expected = f"in {end}, {below:g}) with form={form!r}"
    require("label_smoothing", smoothing, lambda x: low <= x < below, expected)
