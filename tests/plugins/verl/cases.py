"""verl's losses, and the spec of this library's that each is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import logitless as ll
from logitless import presets


class Case(NamedTuple):
    """A loss of verl's under its configuration, and ours, which needs none."""

    mode: str
    spec: ll.PolicyLossSpec
    options: dict[str, Any] = {}  # noqa: RUF012 - never written
    # metrics that are other numbers on purpose
    other: tuple[str, ...] = ()


_COV = {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.05, "clip_cov_ub": 50.0}
_SEQUENCES = {"loss_agg_mode": "seq-mean-token-mean"}
_CLIP = ll.Clip(0.2, 0.2)


def _vanilla(aggregation: str) -> Case:
    spec = replace(presets["ppo_dual_clip"], aggregation=aggregation)  # type: ignore[arg-type]
    options: dict[str, Any] = {"loss_agg_mode": aggregation}
    if aggregation == "seq-mean-token-sum-norm":
        options["loss_scale_factor"] = 32
        spec = replace(spec, max_length=32)
    return Case("vanilla", spec, options)


CASES = {
    **{
        f"vanilla, {name}": _vanilla(name)
        for name in (
            "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean",
            "seq-mean-token-sum-norm",
        )
    },
    "vanilla, clip-higher": Case(
        "vanilla", presets["dapo"], {"clip_ratio_high": 0.28, "clip_ratio_c": 1e9}
    ),
    "gspo": Case("gspo", replace(presets["gspo_token"], surrogate=_CLIP), _SEQUENCES),
    "sapo": Case("sapo", presets["sapo"]),
    "gpg": Case("gpg", presets["gpg"]),
    "cispo": Case("cispo", presets["cispo"], other=("actor/pg_clipfrac",)),
    "dro": Case("dro", presets["dro"], {"dro_beta": 0.1}),
    "geo_mean": Case(
        "geo_mean", replace(presets["gmpo"], surrogate=ll.Gmpo(0.2, 0.2)), _SEQUENCES,
        ("actor/pg_clipfrac", "actor/pg_clipfrac_lower"),
    ),
    "dppo_tv": Case(
        "dppo_tv", replace(presets["dppo_tv"], surrogate=ll.TrustMask("tv", 0.2, 0.2, cap=3.0)),
        other=("actor/pg_clipfrac", "actor/pg_clipfrac_lower"),
    ),
    "dppo_kl": Case(
        "dppo_kl", replace(presets["dppo_kl"], surrogate=ll.TrustMask("kl", 0.2, 0.2, cap=3.0)),
        other=("actor/pg_clipfrac", "actor/pg_clipfrac_lower"),
    ),
    "clip_cov, all of them": Case(
        "clip_cov",
        replace(presets["clip_cov_verl"], control=ll.ClipCov(fraction=1.0, low=0.05, high=50.0)),
        _COV, ("actor/pg_clipfrac",),
    ),
    "kl_cov": Case(
        "kl_cov",
        replace(presets["kl_cov_verl"], control=ll.KLCov(fraction=0.2, coefficient=0.1)),
        {"kl_cov_ratio": 0.2}, ("actor/ppo_kl",),
    ),
}  # fmt: skip

# Losses of verl's that run on this head as they are, and verl's terms beside them.
ENGINE_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "vanilla": ("vanilla", {}),
    "vanilla, entropy": ("vanilla", {"entropy_coeff": 0.01}),
    "vanilla, KL": ("vanilla", {"use_kl_loss": True, "kl_loss_coef": 0.1}),
    "gspo": ("gspo", _SEQUENCES),
    "clip_cov": ("clip_cov", {**_COV, "clip_cov_ratio": 0.2}),
    "kl_cov": ("kl_cov", {"kl_cov_ratio": 0.1}),
}
# Of `engines.save_model`.
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, a group of its own": {"tie_word_embeddings": False},
    "Gemma2's softcap": {"kind": "Gemma2", "final_logit_softcapping": 3.0, "spread": 1.0},
    "Cohere's scale": {"kind": "Cohere", "logit_scale": 0.0625, "spread": 4.0},
}
