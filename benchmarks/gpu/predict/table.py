"""What is predicted: the ops by name, what of the library each is, and their table."""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

import benchmarks.gpu.predict as package
from benchmarks.gpu.predict import model, options
from benchmarks.gpu.predict.model import (
    ACTIVE,
    BUDGET,
    DENSE,
    ITEMSIZE,
    MACHINES,
    Formula,
    Machine,
    Predicted,
    Shape,
    of_tokens,
    one_pass,
    product,
    times,
    token_floor,
)


class Op(NamedTuple):
    formula: Formula
    floor: Formula
    # what of the library it is: public functions, and options as backends/base.py names them
    serves: str


STATS, LOSS = "linear_token_stats", "linear_policy_loss"
# Beside logits that are read once and written once.
TWO, THREE, FOUR = (times(one_pass, number) for number in (2, 3, 4))
OPS: dict[str, Op] = {
    "forward": Op(model.forward, product, STATS),
    "forward, float32 logits": Op(model.wide_forward, product, STATS),
    "forward, fused": Op(model.fused_forward, product, STATS),
    "forward + backward, all kept": Op(model.keep, times(product, 3), f"{STATS} {LOSS}"),
    "forward + backward, recomputed": Op(model.recompute, times(product, 4), STATS),
    "forward + backward in 1 GiB": Op(model.mixed, times(product, 3), STATS),
    "forward + backward, 20% of rows": Op(model.active_rows, times(product, 1 + 2 * ACTIVE), STATS),
    "forward + backward, capacity of 20%": Op(
        options.capacity, times(product, 3 * ACTIVE), "active_capacity"
    ),
    "forward + backward, batch_invariant": Op(
        options.batch_invariant, times(product, 3), "batch_invariant"
    ),
    "forward + backward, tail_mass 1e-3": Op(
        model.sparse, times(product, 1 + 2 * DENSE), "tail_mass"
    ),
    "forward + backward, adapter of rank 16": Op(options.adapter, options.adapter_floor, "adapter"),
    "forward + backward, entropy_top_p": Op(
        options.likeliest, options.likeliest_floor, "entropy_top_p"
    ),
    "forward + backward, sets of 8": Op(
        model.sets, lambda m, s: model.set_bytes(s) / m.memory, "sampling_mask"
    ),
    "the same, d_weight as rows": Op(
        options.weight_rows, lambda m, s: options.row_bytes(s) / m.memory, "weight_grad"
    ),
    "forward + backward, one of 4 ranks": Op(options.sharded, options.sharded_floor, "vocab_group"),
    "forward + backward, a group of one rank": Op(options.alone, times(product, 3), "vocab_group"),
    "draw": Op(model.draw, model.weight_or_product, "linear_sample"),
    "draw from the top": Op(model.draw_from_top, model.weight_or_product, "linear_sample"),
    "draw from the top, flat": Op(model.draw_from_flat, model.weight_or_product, "linear_sample"),
    "rows forward": Op(one_pass, one_pass, "token_stats"),
    "rows backward in place": Op(TWO, TWO, "token_stats"),
    # beside a teacher's logits; those of a mix are read twice
    "two rows forward": Op(TWO, TWO, "divergence"),
    "two rows forward, jsd": Op(FOUR, FOUR, "divergence"),
    "two rows backward": Op(THREE, THREE, "divergence"),
    "two rows forward, noisy teacher": Op(options.noisy, TWO, "teacher_noise"),
    "two heads, all kept": Op(model.two_heads, times(product, 4), "linear_divergence"),
    "two heads, 60% of rows": Op(
        options.masked_heads, times(product, 4 * options.MASKED), "linear_divergence"
    ),
    "two heads, sets of 8": Op(
        options.pair_sets, lambda m, s: options.pair_set_bytes(s) / m.memory, "linear_divergence"
    ),
    # of as many tokens as there are rows
    **{
        name: Op(of_tokens(counts), token_floor(counts), serves)
        for name, (serves, counts) in model.TOKENS.items()
    },
}
# Public functions that no time of a device is asked of.
UNTIMED = {
    "check": "runs other ops",
    "fit_entropy_law": "fits a line on the host",
    "gathered": "a collective of torch's",
    "head_of": "measures a model once",
    "plan": "of numbers",
    "release_memory": "frees memory",
    "vocab_shard": "once, before training",
    "warm": "runs other ops",
}


def predict(machine: Machine, shape: Shape) -> list[Predicted]:
    return [
        Predicted(name, op.formula(machine, shape), op.floor(machine, shape))
        for name, op in OPS.items()
    ]


# Name -> options of ll.plan, and products of the floor.
PLANNED: dict[str, tuple[dict[str, Any], int]] = {
    "forward, as planned": ({"backward": False}, 1),
    "forward, float32, as planned": ({"backward": False, "logits_dtype": "float32"}, 1),
    "forward + backward, as planned": ({"one_pass": False}, 3),
    "forward + backward in 1 GiB, as planned": ({"one_pass": False, "budget": BUDGET}, 3),
    "one pass, as planned": ({}, 3),
}


def planned(name: str, shape: Shape) -> list[Predicted]:
    """What the planner makes of a machine of the package's own table, where there is room."""
    try:
        import logitless as ll
    except ImportError:
        return []
    found, sizes = [], (shape.rows, shape.width, shape.vocab, shape.dtype)
    for op, (asked, count) in PLANNED.items():
        # No less than its rows need.
        try:
            plan = ll.plan(*sizes, **asked, device=name)
        except ValueError:
            continue
        note = f"{plan.mode if count > 1 else 'tiles'}, {plan.rows} x {plan.columns}"
        floor = count * product(MACHINES[name], shape)
        found.append(Predicted(op, plan.expected_seconds, floor, note))
    return found


def table(name: str, shape: Shape, found: list[Predicted]) -> str:
    lines = [
        f"predicted for {name}: {shape.rows} x {shape.width} x {shape.vocab} {shape.dtype};"
        " not measured",
        "",
        f"{'predicted':40} {'ms':>9} {'floor':>9} {'ratio':>6}",
        *(
            f"{p.op:40} {1e3 * p.seconds:9.2f} {1e3 * p.floor:9.2f} {p.seconds / p.floor:6.2f}"
            f"  {p.note}".rstrip()
            for p in found
        ),
    ]
    return "\n".join(lines)


def markdown(shape: Shape, found: dict[str, list[Predicted]]) -> str:
    """All machines side by side: milliseconds, and the part of them that is the floor."""
    by_op: dict[str, dict[str, Predicted]] = {}
    for name, each in found.items():
        for p in each:
            by_op.setdefault(p.op, {})[name] = p
    sizes = f"{shape.rows} x {shape.width} x {shape.vocab} {shape.dtype}"
    lines = [
        "# Predicted times on GPUs",
        "",
        f"Predicted, not measured: {sizes}. A cell has milliseconds and the floor's share of them.",
        "Written by",
        "",
        "```",
        f"{COMMAND}",
        "```",
        "",
        "which says what the model knows and what a floor is. `python -m benchmarks.gpu.contact`",
        "prints measurements beside it.",
        "",
        f"| predicted | {' | '.join(found)} |",
        "|---|" + "--:|" * len(found),
    ]
    for op, row in by_op.items():
        cells = [_cell(row[name]) if name in row else "" for name in found]
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(p: Predicted) -> str:
    return f"{1e3 * p.seconds:.3g}, {p.floor / p.seconds:.0%}"


COMMAND = (
    "python -m benchmarks.gpu.predict --machine all --markdown"
    " > benchmarks/results/predicted_gpu.md"
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.predict",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--machine", choices=[*MACHINES, "all"], default="H200")
    for name, default in (("rows", 8192), ("width", 4096), ("vocab", 151_936)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=list(ITEMSIZE), default="bfloat16")
    parser.add_argument("--op", choices=[*OPS, *PLANNED], help="this one alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="machines side by side")
    chosen = parser.parse_args(arguments)
    if min(chosen.rows, chosen.width, chosen.vocab) < 1:
        parser.error("--rows, --width and --vocab must be positive")
    shape = Shape(chosen.rows, chosen.width, chosen.vocab, chosen.dtype)
    names = list(MACHINES) if chosen.machine == "all" else [chosen.machine]
    found = {
        name: [
            p
            for p in (*predict(MACHINES[name], shape), *planned(name, shape))
            if chosen.op in (None, p.op)
        ]
        for name in names
    }
    if chosen.json:
        lines: dict[str, Any] = {
            name: {p.op: {"ms": 1e3 * p.seconds, "floor_ms": 1e3 * p.floor} for p in each}
            for name, each in found.items()
        }
        print(json.dumps({"predicted": lines, "shape": vars(shape)}, indent=1))
    elif chosen.markdown:
        print(markdown(shape, found))
    else:
        print("\n\n".join(table(name, shape, each) for name, each in found.items()))
