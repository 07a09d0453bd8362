"""Honest arguments of every public function, and for each argument values that are not honest."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import logitless as ll

N, H, V, G = 4, 8, 16, 6
HUGE_INT, NAN, INF = 10**400, float("nan"), float("inf")


class Odd:
    """Of no use to anybody."""

    def __repr__(self) -> str:
        return "odd"


def floats(*shape: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape)


def logp() -> torch.Tensor:
    return -torch.linspace(0.1, 1.0, N)


def whole_mask() -> torch.Tensor:
    return torch.tensor([True, True, False, True])


def batch() -> ll.BatchStats:
    return ll.batch_stats(
        logp(), floats(N), whole_mask(), ll.presets["ppo"], token_ids=torch.arange(N), seed=0,
        step=0,
    )  # fmt: skip


# What looks at every array, so that none is accepted for not being looked at.
USES_ALL = dataclasses.replace(
    ll.presets["ppo"],
    kl=ll.KL("k2"),
    correction=ll.corrections["tis"],
    control=ll.EntropyRatioClip(),
)
MEANS = dataclasses.replace(
    ll.presets["tea"], correction=ll.Correction("token", normalize=True)
)  # fmt: skip
CHAIN: dict[str, Any] = {
    "temperature": 1.0, "softcap": None, "logit_scale": 1.0, "bias": floats(V),
    "vocab_group": None, "vocab_start": 0,
}  # fmt: skip
COMPUTE: dict[str, Any] = {
    "memory_budget": "64MiB", "tail_mass": 0.0, "tail_entries": 512, "active_capacity": None,
    "logits_dtype": None, "batch_invariant": False, "backend": "auto",
}  # fmt: skip
LOSS: dict[str, Any] = {
    "old_logp": logp() * 1.1, "advantages": floats(N), "mask": whole_mask(),
    "spec": USES_ALL, "ref_logp": logp(), "rollout_logp": logp(), "weights": logp().abs(),
    "old_entropy": logp().abs(), "token_ids": torch.arange(N),
    "cu_seqlens": torch.tensor([0, 2, 4], dtype=torch.int32),
    "batch": None, "totals": ll.Totals(N, 2), "grad_scale": 1.0,
    "metrics": "means",
}  # fmt: skip
HEAD: dict[str, Any] = {
    "hidden": floats(N, H), "weight": floats(V, H), "targets": torch.arange(N),
}  # fmt: skip
DRAW: dict[str, Any] = {
    key: value
    for key, value in {**CHAIN, **COMPUTE}.items()
    if key not in ("tail_mass", "tail_entries", "active_capacity", "backend")
}
ADAPTER: dict[str, Any] = {"adapter": (floats(2, H), floats(V, 2), 0.5)}
PAIR: dict[str, Any] = {
    "mask": whole_mask(), "kind": "jsd", "beta": 0.3, "sampling_mask": None,
    **{key: CHAIN[key] for key in ("temperature", "softcap", "logit_scale", "bias")},
    "teacher_temperature": None, "teacher_softcap": None, "teacher_logit_scale": 1.0,
    "teacher_bias": floats(V),
    "teacher_noise": logp().abs(), "seed": 1, "step": 2, "row_ids": torch.arange(N),
}  # fmt: skip
SETS = ll.SamplingMask.from_lists([[0, 1], [2, 1], [], [3]])
SAMPLED: dict[str, Any] = {"sampling_mask": None}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "token_stats": {
        "logits": floats(N, V), "targets": torch.arange(N), "mask": whole_mask(), **CHAIN,
        **SAMPLED, "extras": ("argmax",), "selected_ids": torch.arange(3),
        "inplace_backward": False, "backend": "auto",
    },
    "linear_token_stats": {
        **HEAD, "mask": whole_mask(), **CHAIN, "extras": ("argmax",), "entropy_top_p": None,
        "selected_ids": torch.arange(3), **ADAPTER, **COMPUTE, **SAMPLED, "weight_grad": "dense",
    },
    "divergence": {
        "logits": floats(N, V), "teacher_logits": floats(N, V).flip(1), **PAIR, "extras": (),
        "vocab_group": None, "vocab_start": 0, "backend": "auto",
    },
    "linear_divergence": {
        "hidden": HEAD["hidden"], "weight": HEAD["weight"], "teacher_hidden": floats(N, G),
        "teacher_weight": floats(V, G), **PAIR, **ADAPTER, "extras": (), "vocab_group": None,
        "vocab_start": 0, "memory_budget": "64MiB", "logits_dtype": None, "weight_grad": "dense",
        "active_capacity": None, "backend": "auto",
    },
    "policy_loss": {"logp": logp(), "entropy": logp().abs(), **LOSS},
    "linear_policy_loss": {
        **HEAD, **LOSS, **CHAIN, **ADAPTER, "extras": ("argmax",),
        "selected_ids": torch.arange(3), "entropy_top_p": None, **COMPUTE, **SAMPLED,
        "weight_grad": "dense",
    },
    "linear_sample": {
        "hidden": HEAD["hidden"], "weight": HEAD["weight"], **DRAW, **ADAPTER, "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 1, "step": 2, "row_ids": torch.arange(N),
    },
    "batch_stats": {
        "logp": logp(), "spec": MEANS,
        **{k: LOSS[k] for k in ("advantages", "mask", "old_logp")},
        "entropy": logp().abs(), "entropy_change": floats(N), "rollout_logp": logp(),
        "cu_seqlens": LOSS["cu_seqlens"], "token_ids": torch.arange(N), "data_group": None,
        "seed": 1, "step": 2,
    },
    "token_ids": {
        "sequence_ids": torch.arange(2), "positions": torch.arange(3), "max_length": 8,
    },
    "covariance": {
        "logp": logp(), "advantages": floats(N), "mask": whole_mask(), "data_group": None
    },
    "fit_entropy_law": {"entropy": [0.1, 0.2, 0.3], "reward": [0.1, 0.3, 0.2]},
    "plan": {
        "tokens": 10, "hidden": 8, "vocab": 100, "dtype": "float32", "budget": "64MiB",
        "logits_dtype": None, "gradients": ("hidden",), "adapter_rank": 2, "backward": True,
        "one_pass": True, "split": True, "batch_invariant": False,
        "tail_mass": 0.0, "tail_entries": 512, "expected_served": 0.0, "active_capacity": None,
        "kept_entries": 0, "sampled_ids": 0, "device": "cpu",
    },
    "check": {
        "head": floats(V, H), "batch": {"hidden": floats(N, H), "targets": torch.arange(N)},
        "rows": 2,
    },
    "rollout_weights": {
        "old_logp": logp(), "rollout_logp": logp(), "mask": whole_mask(),
        "correction": ll.corrections["tis"], "cu_seqlens": LOSS["cu_seqlens"],
    },
    "gathered": {"weight": floats(V, H), "reduce": "avg"},
    "warm": {"device": "cpu", "dtype": torch.float32, "vocab": 16, "backend": "auto"},
    "sequence_logp": {
        "logp": logp(), "mask": whole_mask(), "cu_seqlens": LOSS["cu_seqlens"], "average": True,
        "discount": 1.0,
    },
    "release_memory": {},
}  # fmt: skip

# What functions return, or hand to a formula of the caller's: made by the library alone.
RESULTS = {
    "BatchStats", "Check", "Covariance", "Divergence", "EntropyLaw", "Head",
    "LinearPolicyLossOutput", "Plan", "PolicyLossOutput", "RolloutWeights",
    "Sample", "SurrogateInputs", "TokenStats", "VocabShard",
}  # fmt: skip
# Without arguments: tables, and what one derives from.
OTHERS = {
    "__version__",
    # of pure functions: tests/advantages/
    "advantages",
    "build_info",
    "CustomControl",
    "CustomSurrogate",
    # of a model: tests/integrations/
    "head_of",
    "NoPolicy",
    # of pure functions: tests/preference/
    "preference",
    "Reinforce",
    "Unclipped",
    # a collective: its arguments are those of workers/collectives.py
    "vocab_shard",
}

NOT_NUMBERS: list[Any] = ["a", True, [1.0], 1j, Odd(), np.ones(2), torch.ones(2), np.array("a")]
NOT_FINITE: list[Any] = [NAN, INF, -INF, HUGE_INT, np.float32("nan"), torch.tensor(NAN)]
NUMBER = [None, *NOT_NUMBERS, *NOT_FINITE, torch.ones((), device="meta")]
POSITIVE = [*NUMBER, 0, 0.0, -1.0, np.int64(-1)]
INT = [None, *NOT_NUMBERS, NAN, INF, 1.5, -1, 2**64, HUGE_INT, np.float64(2.5)]
FLAG: list[Any] = [None, "yes", 1, 0.0, Odd(), np.ones(2), torch.tensor(True)]
WORD: list[Any] = [None, "nothing", 1, b"auto", ["auto"], np.array(["a", "b"]), Odd()]
GROUP: list[Any] = [1, "group", Odd(), [0, 1]]
NO_ARRAYS: list[Any] = ["a", 1.0, True, [1.0, 2.0], Odd(), np.float64(1.0)]
DTYPE: list[Any] = ["int8", 32, Odd(), torch.int64, np.ones(2), torch.ones(2)]


def nested(good: torch.Tensor) -> list[torch.Tensor]:
    # torch warns of both that they may change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layouts = (torch.strided, torch.jagged)
        return [torch.nested.nested_tensor([good, good], layout=layout) for layout in layouts]


def arrays(good: torch.Tensor, *dtypes: torch.dtype) -> list[Any]:
    """What an array like `good` is not: another kind, framework, layout, device, shape, dtype."""
    shapes = [good.new_ones(()), good.new_ones(3, 5, 2, 2), torch.cat([good, good])]
    layouts = [good.to_sparse(), good.to("meta"), *nested(good)]
    return [*NO_ARRAYS, good.numpy(), *layouts, *shapes, *(good.to(dtype) for dtype in dtypes)]


C64, I64, B, F32 = torch.complex64, torch.int64, torch.bool, torch.float32
ROWS = torch.ones(N)


def data(good: torch.Tensor) -> list[Any]:
    """Per-token floats that are data: where the mask is true they are finite."""
    grad = good.clone().requires_grad_()
    values = [torch.where(torch.arange(N) == 1, x, good) for x in (NAN, INF, -INF)]
    return [*arrays(good, C64, I64, B), grad, *values]


def required(values: list[Any]) -> list[Any]:
    return [None, *values]


def without_grad(values: list[Any]) -> list[Any]:
    return [x for x in values if not (isinstance(x, torch.Tensor) and x.requires_grad)]


CU = LOSS["cu_seqlens"]
WRAPS = ([0, 2**31 - 1, -5, 4], [0, 3, 2, 4], [1, 4], [0, 3], [0, 9, 4], [-1, 4], [])
SEQLENS = [
    *NO_ARRAYS, CU.numpy(), CU.to("meta"), CU.to_sparse(), CU.to(F32), CU.to(torch.int16),
    CU[None], *(torch.tensor(x, dtype=torch.int32) for x in WRAPS),
]  # fmt: skip
BUDGET: list[Any] = [
    "much", "-5MiB", "1e30GiB", "9" * 300, "1GiB GiB", "", -1, 0, 2**200, NAN, 1.5, True, [1],
    Odd(), np.ones(2),
]  # fmt: skip
IDS = torch.arange(N)
TEMPERATURES = [
    torch.full((N,), x) for x in (NAN, INF, 0.0, -1.0)
] + [ROWS[:1], ROWS.to(C64), ROWS.to(B), ROWS.to("meta"), ROWS.numpy()]  # fmt: skip
# Argument -> what it must refuse. A function's own differ where its name stands before.
ARGUMENTS: dict[str, list[Any]] = {
    "logits": required(arrays(floats(N, V), C64, I64, B)),
    "hidden": required(arrays(floats(N, H), C64, I64, B, torch.float64)),
    "weight": required(arrays(floats(V, H), C64, I64, B, torch.float64)),
    "targets": required([*arrays(IDS, F32, B, torch.uint8), IDS - 1, IDS + 2**62]),
    "mask": [
        *arrays(whole_mask(), F32, C64), 2 * whole_mask().to(I64), -whole_mask().to(torch.int8),
    ],
    "temperature": [x for x in POSITIVE if not isinstance(x, (np.ndarray, torch.Tensor))]
    + TEMPERATURES,
    "softcap": POSITIVE[1:],
    "logit_scale": POSITIVE,
    "bias": [*arrays(floats(V), C64, I64, B)],
    "adapter": [
        1, "lora", Odd(), floats(V, 2), [], (), ADAPTER["adapter"][:2], list(ADAPTER["adapter"]),
        *((A, ADAPTER["adapter"][1], 0.5) for A in required(arrays(floats(2, H), C64, I64, B))),
        *((ADAPTER["adapter"][0], x, 0.5) for x in required(arrays(floats(V, 2), C64, I64, B))),
        *((*ADAPTER["adapter"][:2], scale) for scale in NUMBER), (floats(0, H), floats(V, 0), 1.0),
    ],
    "extras": [None, "argmax", 1, ("nothing",), (1,), [None], Odd(), np.array(["argmax"])],
    "selected_ids": [
        *NO_ARRAYS, IDS.numpy(), IDS.to("meta"), IDS.to_sparse(), *nested(IDS), IDS[None],
        torch.ones((), dtype=I64), IDS.to(F32), IDS.to(B), IDS.to(torch.uint8), IDS - 1, IDS + V,
    ],
    "vocab_group": GROUP,
    "vocab_start": [*INT, 1],
    "inplace_backward": FLAG,
    "backend": WORD,
    "memory_budget": BUDGET,
    "tail_mass": [*NUMBER, -0.1, 1.0, 1e-9],
    "tail_entries": [*INT, 0, 63, 96, 1088],
    "expected_served": [*NUMBER, -0.1, 0.5, 1.1],
    "active_capacity": [*INT[1:], 0],
    "logits_dtype": DTYPE,
    "batch_invariant": FLAG,
    "logp": required(data(logp())),
    "sequence_logp.logp": required(without_grad(data(logp()))),
    "policy_loss.logp": required(without_grad(data(logp()))),
    "policy_loss.entropy": without_grad(data(logp().abs())),
    "old_logp": data(logp()),
    "advantages": required(data(floats(N))),
    "spec": [None, "ppo", 1, Odd(), ll.KL(), ll.PolicyLossSpec],
    "entropy": data(logp().abs()),
    "ref_logp": data(logp()),
    "rollout_logp": data(logp()),
    "old_entropy": data(logp().abs()),
    "weights": [*data(logp().abs()), -logp().abs()],
    "cu_seqlens": SEQLENS,
    "token_ids": [*arrays(IDS, F32, B, torch.int32)],
    "batch": [1, "batch", Odd(), ll.Totals(4, 2), (1, 2)],
    "totals": [1, "totals", (4, 2), Odd(), ll.Totals(1, 1)],
    "grad_scale": NUMBER,
    "metrics": WORD,
    "top_k": [x for x in INT if x is not None] + [0],
    "top_p": [x for x in POSITIVE if x is not None] + [1.5],
    "entropy_top_p": [x for x in POSITIVE if x is not None] + [1.5],
    "min_p": [x for x in NUMBER if x is not None] + [-0.1, 1.5],
    "sampling_mask": [
        1, "sets", Odd(), [[0, 1]], (SETS.token_ids, SETS.offsets), ll.SamplingMask,
        ll.SamplingMask.from_lists([[0]]), ll.SamplingMask.from_lists([[1], [1], [2], [3]]),
    ],
    **{
        f"{name}.sampling_mask": [
            1, "sets", Odd(), [[0, 1]], (SETS.token_ids, SETS.offsets), ll.SamplingMask,
            ll.SamplingMask.from_lists([[0]]), ll.SamplingMask.from_lists([[V], [1], [2], [3]]),
        ]
        for name in ("divergence", "linear_divergence")
    },
    "weight_grad": [*WORD, "rows"],
    "seed": [x for x in INT if x is not None] + [None],
    "step": INT,
    "row_ids": required(arrays(IDS, F32, B, torch.int32)),
    "data_group": GROUP,
    "entropy_change": data(floats(N))[:-3],
    "batch_stats.token_ids": [
        *required(arrays(IDS, F32, B, torch.int32)), IDS * 0, IDS - 1, IDS * 0 + 2**63 - 1,
        IDS - 2**63,
    ],
    "sequence_ids": required(
        [*NO_ARRAYS, IDS.numpy(), IDS.to("meta"), floats(2), IDS - 1, IDS[:2] + 2**62,
         IDS.reshape(2, 2), torch.ones((), dtype=I64)]
    ),
    "positions": required(
        [*NO_ARRAYS, IDS.numpy(), IDS.to("meta"), floats(2), IDS - 1, IDS + 8]
    ),
    "max_length": [*INT, 0],
    "average": FLAG,
    "discount": [*POSITIVE, 1.5],
    "fit_entropy_law.entropy": [
        None, "abc", 1.0, Odd(), [0.1, None, 0.3], ["a", "b", "c"], [0.1, NAN, 0.2],
        [0.1, INF, 0.3], [0.1, 1e308, 0.3], [0.1, HUGE_INT, 0.3], [0.1, 0.2], [[0.1, 0.2, 0.3]],
        [1j, 2j, 3j], [0.5] * 3, np.array(["a", "b", "c"]), torch.ones(3, device="meta"),
        torch.ones(3).to(C64), np.array([True, False, True]), {1.0, 2.0, 3.0},
    ],
    "tokens": INT,
    "plan.hidden": [*INT, 0],
    "vocab": [*INT, 0],
    "dtype": [None, *DTYPE],
    "gradients": [None, "hidden", 1, ("bias",), (1,), Odd()],
    "backward": FLAG,
    "one_pass": FLAG,
    "split": FLAG,
    "kept_entries": INT,
    "sampled_ids": INT,
    "adapter_rank": INT,
    "head": [None, 1, "lm_head", Odd(), floats(V), floats(V, H).to(I64)],
    "check.batch": [None, 1, {}, {"hidden": floats(N, H)}, Odd()],
    "rows": [*INT, 0],
    "correction": [None, "tis", 1, Odd(), ll.presets["ppo"]],
    "gathered.weight": [None, 1, "a", [1.0], np.ones((2, 2)), Odd()],
    "reduce": WORD,
    "device": [None, "banana", 1.5, Odd(), [0]],
}  # fmt: skip
ARGUMENTS["budget"] = ARGUMENTS["memory_budget"]
ARGUMENTS |= {
    "teacher_logits": ARGUMENTS["logits"],
    "teacher_hidden": required(arrays(floats(N, G), C64, I64, B, torch.float64)),
    "teacher_weight": required(arrays(floats(V, G), C64, I64, B, torch.float64)),
    "teacher_temperature": [x for x in ARGUMENTS["temperature"] if x is not None],
    "teacher_softcap": ARGUMENTS["softcap"],
    "teacher_logit_scale": ARGUMENTS["logit_scale"],
    "teacher_bias": ARGUMENTS["bias"],
    "teacher_noise": [
        *NUMBER,
        -0.1,
        *(x for i, x in enumerate(TEMPERATURES) if i != 2),
        ROWS.to(I64),
    ],
    "kind": WORD,
    "beta": [*POSITIVE, 1.0, 1.5],
}
ARGUMENTS["fit_entropy_law.reward"] = [
    x for x in ARGUMENTS["fit_entropy_law.entropy"] if not (isinstance(x, list) and x == [0.5] * 3)
]
ARGUMENTS["rollout_weights.mask"] = required(ARGUMENTS["mask"])
# Where a message says what an argument is and not its name.
CALLED = {
    "targets": "target", "budget": "memory_budget", "check.batch": "batch", "totals": "totals",
    "logits_dtype": "dtype", "head": "head|weight",
    # those that another array of the call is shaped by
    "linear_sample.hidden": "hidden|row_ids",
    "weight": "weight|bias",
    "logp": "logp|cu_seqlens",
    "rollout_weights.old_logp": "logp|cu_seqlens",
}  # fmt: skip


def of(function: str, argument: str) -> list[Any]:
    own = f"{function}.{argument}"
    if own in ARGUMENTS:
        return ARGUMENTS[own]
    values = ARGUMENTS[argument]
    # a mask is optional where statistics are asked for, and not where losses are
    optional = (
        "token_stats", "linear_token_stats", "divergence", "linear_divergence", "sequence_logp"
    )  # fmt: skip
    needs_mask = argument == "mask" and function not in optional
    return required(values) if needs_mask else values


def cases() -> list[tuple[str, str]]:
    return [(function, argument) for function, honest in FUNCTIONS.items() for argument in honest]


# ---- the dataclasses of specs, field by field

FIELD_NUMBER, FIELD_OPTIONAL = [*NUMBER], [x for x in NUMBER if x is not None]
FIELDS: dict[str, list[Any]] = {
    "Literal": [None, "nothing", 1, ["k1"], np.array(["a", "b"]), Odd()],
    "float": [*NUMBER, 1e400],
    "float | None": FIELD_OPTIONAL,
    "int": INT,
    "int | None": [x for x in INT if x is not None],
    "bool": FLAG,
}
FIELDS |= dict.fromkeys(("KLEstimator", "KLWeight", "Reference", "Scope"), FIELDS["Literal"])
FIELDS |= dict.fromkeys(("Normaliser", "Divergence", "Measure", "Outside"), FIELDS["Literal"])
FIELDS |= dict.fromkeys(("Ratio", "Aggregation"), FIELDS["Literal"])
FIELDS["Aggregation | None"] = FIELDS["Level | None"] = [
    x for x in FIELDS["Literal"] if x is not None
]
FIELDS["tuple[Reject, ...]"] = [None, 1, "veto", (1,), [None], Odd()]
PART: list[Any] = ["clip", 1.0, Odd(), [ll.Clip()], ll.Clip]
TENSORS = [x for x in arrays(IDS, F32, B) if not isinstance(x, np.ndarray)]
FIELDS["Ids"] = [*required(TENSORS), IDS - 1]
FIELDS["Surrogate"] = [None, *PART]
FIELDS |= {f"{name} | None": PART for name in ("AnyControl", "KL", "Correction")}
FIELDS["AnyEntropy | None"] = PART
NEEDED: dict[str, dict[str, Any]] = {
    "SamplingMask": {"token_ids": torch.arange(3), "offsets": torch.tensor([0, 2, 3])},
    "PolicyLossSpec": {"aggregation": "seq-mean-token-sum-norm"},
    "EntropyBonus": {"coefficient": 0.1}, "EntropyFloor": {"strength": 0.1, "target": 1.0},
    "StepController": {"target": 1.0}, "LogController": {"target": 1.0},
    "RepoController": {"target": 1.0}, "PIController": {"target": 1.0},
    "Totals": {"tokens": 4, "sequences": 2},
}  # fmt: skip


def parts() -> list[type[Any]]:
    """Every public class that a caller makes."""
    named = (getattr(ll, name) for name in ll.__all__ if name not in RESULTS | OTHERS)
    return [x for x in named if isinstance(x, type)]


def fields_of(part: type[Any]) -> dict[str, str]:
    """Field -> its annotation, as it is written."""
    if dataclasses.is_dataclass(part):
        return {field.name: str(field.type) for field in dataclasses.fields(part)}
    return {k: str(p.annotation) for k, p in inspect.signature(part).parameters.items()}


def part_cases() -> list[tuple[type[Any], str]]:
    return [(part, name) for part in parts() for name in fields_of(part)]


def honest_call(function: str, numpy: bool = False, **change: Any) -> Callable[[], Any]:
    options = {**FUNCTIONS[function], **change}
    if numpy:
        options = {name: as_numpy(x) for name, x in options.items()}
    return lambda: getattr(ll, function)(**options)


NUMPY = (
    "token_stats", "linear_token_stats", "divergence", "linear_divergence", "policy_loss",
    "linear_policy_loss", "batch_stats",
    "token_ids", "covariance", "rollout_weights", "sequence_logp",
)  # fmt: skip


def as_numpy(x: Any) -> Any:
    """A plain tensor as an array, and the other way round: each stands in the other's call."""
    if type(x) is tuple:
        return tuple(map(as_numpy, x))
    if isinstance(x, np.ndarray) and x.dtype.kind in "iufb":
        return torch.from_numpy(x)
    plain = isinstance(x, torch.Tensor) and x.layout is torch.strided and not x.is_nested
    return x.numpy() if plain and x.device.type == "cpu" and not x.requires_grad else x
