"""The strategies that fit a memory budget: what the planner chooses from."""

from __future__ import annotations

from dataclasses import replace

from logitless.backends.machine import Machine
from logitless.ops.head.planner import cost
from logitless.ops.head.planner.cost import ITEMSIZE, Problem, Strategy


def _halved(size: int, smallest: int) -> list[int]:
    sizes = [size]
    while sizes[-1] > smallest:
        sizes.append(max(-(-sizes[-1] // 2), smallest))
    return sizes


def bare(problem: Problem, fixed: int, machine: Machine) -> list[Strategy]:
    """Tiles of fewer and fewer rows, no logits kept."""
    tallest = machine.fixed_tile_rows if fixed else max(1, min(problem.tokens, machine.tile_rows))
    return [
        Strategy(rows, _columns(problem, rows, fixed, machine), 0, fixed_rows=fixed)
        for rows in _halved(tallest, fixed or 1)
    ]


def _columns(problem: Problem, rows: int, fixed: int, machine: Machine) -> int:
    """As wide as tile and weights may be; with `fixed` the same for any batch."""
    once = not problem.backward and not fixed and rows == problem.tokens
    rows = machine.fixed_tile_rows if fixed else rows
    # Rows of weight that a forward reads once need not stay in a cache; but casts of them do.
    of_weight = None
    if not (once and problem.operand_dtype(machine) == problem.dtype and not problem.rank):
        of_weight = machine.weight_bytes // (problem.width * ITEMSIZE[problem.dtype])
    return cost.tile_columns(problem.vocab, rows, problem.item, machine, of_weight)


def _all_kept(problem: Problem, strategy: Strategy, machine: Machine) -> Strategy:
    """Where tiles do not stay in caches anyway, all of them are one."""
    if machine.cached or strategy.fixed_rows:
        return strategy
    return replace(strategy, tile_columns=problem.vocab)


def default_budget(problem: Problem, bare: Strategy, machine: Machine) -> int:
    """What holding all logits at once takes, up to a limit that one tile may exceed."""
    ways = [replace(bare, kept_columns=problem.vocab)]
    if problem.backward and problem.tokens:
        ways.append(replace(bare, chunk_rows=problem.tokens))
    most = max(
        cost.total_bytes(problem, _all_kept(problem, strategy, machine), machine)
        for strategy in ways
    )
    return max(min(machine.default_budget, most), cost.total_bytes(problem, bare, machine))


def two_pass(
    problem: Problem, bare: list[Strategy], limit: int, machine: Machine
) -> list[Strategy]:
    """The tallest products that fit, without kept logits and with as many as there is room for."""
    for strategy in bare:
        if cost.total_bytes(problem, strategy, machine) > limit:
            continue
        if not problem.backward or not problem.tokens:
            return [strategy]
        whole = replace(strategy, kept_columns=problem.vocab)
        whole = _all_kept(problem, whole, machine)
        if cost.total_bytes(problem, whole, machine) <= limit:
            return [strategy, whole]
        parts = (_part_kept(problem, each, limit, machine) for each in _narrower(strategy, machine))
        return [strategy, *(each for each in parts if each.kept_columns)]
    return []


def _narrower(strategy: Strategy, machine: Machine) -> list[Strategy]:
    """Where tiles do not stay in caches they are large, and few of them fill a budget badly."""
    columns, quantum = strategy.tile_columns, machine.column_quantum
    if machine.cached or strategy.fixed_rows:
        return [strategy]
    widths = {columns, *(columns // part // quantum * quantum for part in (2, 3, 4, 6, 8))}
    return [replace(strategy, tile_columns=width) for width in sorted(widths - {0}, reverse=True)]


def _part_kept(problem: Problem, bare: Strategy, limit: int, machine: Machine) -> Strategy:
    columns, room = bare.tile_columns, limit - cost.total_bytes(problem, bare, machine)
    fitting = room // (problem.item * cost.padded(problem.tokens, bare))
    # The last, narrower tile is kept with all others or not at all.
    return replace(bare, kept_columns=min(fitting, problem.vocab - 1) // columns * columns)


def one_pass(
    problem: Problem, limit: int, fixed: int, split: bool, machine: Machine
) -> list[Strategy]:
    """Chunks of all rows, half of them, a quarter ...: those that fit."""
    strategies, tokens = [], problem.tokens
    for chunk in _halved(tokens, min(machine.shortest_chunk, tokens) if split else tokens):
        rows = min(chunk, machine.tile_rows)
        if fixed:
            rows = min(-(-chunk // fixed) * fixed, machine.fixed_tile_rows)
            chunk = -(-chunk // fixed) * fixed if chunk < tokens else chunk
        strategy = Strategy(rows, _columns(problem, rows, fixed, machine), 0, chunk, fixed)
        strategy = _all_kept(problem, strategy, machine)
        if cost.total_bytes(problem, strategy, machine) <= limit:
            strategies.append(strategy)
    return strategies
