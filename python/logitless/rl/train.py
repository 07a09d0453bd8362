"""One method's training run, top to bottom. What it leaves out: a value model.

All ranks run it, and write nothing but by the first.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from logitless.rl.answer_rows import answer_rows
from logitless.rl.engine import make_engine, ranks
from logitless.rl.evaluation import record
from logitless.rl.experience import collect, describe, unscored
from logitless.rl.policy import Policy
from logitless.rl.recipe import Recipe, make_spec
from logitless.rl.tasks import Task, following_of
from logitless.rl.tracking import checkpoint, divergence, memory
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.log import Log
from logitless.rl.tracking.metrics import Row
from logitless.rl.tracking.progress import Progress
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import (
    EntropyProbe,
    advantage_name,
    follower_of,
    update_policy,
    with_reference,
)


def train(
    name: str,
    policy: Policy,
    task: Task,
    recipe: Recipe,
    log: Log,
    progress: Progress,
    stop: StopRequest,
    resume: bool,
) -> list[Row]:
    """Trains `policy` in place and returns its metrics, one row a step, which `log` has as well.
    Raises Diverged where they are numbers no more. Collective.
    """
    spec = make_spec(name, recipe.methods[name], recipe.rollout.max_new_tokens)
    advantage, entropy_top_p = advantage_name(recipe, name), recipe.methods[name].entropy_top_p
    reference = recipe.reference if "ref_logp" in spec.needs else None
    engine = make_engine(policy, recipe.update, recipe.steps, reference)
    follower = follower_of(name, spec, recipe.methods[name].controller)
    following = following_of(task)
    following.begin()

    def load_own(saved: Path) -> None:
        engine.load(saved)
        if follower is not None:
            follower.load(saved)
        following.load(saved)

    def load(saved: Path) -> None:
        # one that a rank cannot read is none
        ranks.together(partial(load_own, saved))

    def save(done: int) -> None:
        part = ranks.first(partial(checkpoint.begin, log.folder, done))
        with checkpoint.filled(part):
            engine.save(part)
            ranks.first(partial(checkpoint.link_tokenizer, part, policy.save_tokenizer))
            if follower is not None:
                ranks.first(partial(follower.save, part))
            ranks.first(partial(following.save, part))
            ranks.first(partial(checkpoint.finish, part, recipe.checkpoint_keep))

    def evaluate(done: int) -> None:
        with engine.whole() as now:
            row = record(log, done, now, task, recipe, evaluations)
        evaluations.append(row)
        progress.evaluated(name, row)

    start = 0
    if resume:
        ranks.same(partial(checkpoint.newest_first, log.folder))
        start = checkpoint.resume(log.folder, load, progress.say)
    progress.skip(min(start, recipe.steps))
    rows, evaluations = ranks.first(partial(log.begin, start))
    every = recipe.evaluation.every
    if every and not evaluations:
        evaluate(start)
    memory.reset_peak()

    for step in range(start, recipe.steps):
        began = time.perf_counter()
        clock = Stopwatch()
        with divergence.watched(name, step, engine.broken):
            with engine.whole() as now:
                experience = collect(now, task, recipe, advantage, step, clock)
            followed = ranks.together(partial(following.after_step, experience.sampled.answered()))
            rollout = with_reference(engine, experience.rollout, recipe, clock)
            advantages = experience.advantages
            if experience.failures:
                progress.say(f"{name} step {step + 1}: {unscored(experience)}")

            probe = None
            if recipe.entropy_change_every and step % recipe.entropy_change_every == 0:
                with clock("entropy probe"):
                    cut = engine.cut(recipe.update.minibatches)
                    temperature, share = recipe.rollout.temperature, recipe.entropy_change_share
                    probe = EntropyProbe(engine, rollout, temperature, cut, share)
            update = update_policy(
                engine, rollout, advantages, spec, recipe, step, clock, follower, entropy_top_p
            )
            change = None
            if probe is not None:
                with clock("entropy probe"):
                    change = probe.change()
        rate = engine.learning_rate
        engine.advance()
        divergence.check_finite(name, step, update.metrics)
        row = describe(experience, recipe.task.right) | {
            "step": step,
            "logp_gap": update.logp_gap,
            "selected_tokens": update.selected_tokens,
            "actor/lr": rate,
        }
        row |= update.metrics | followed
        # verl's name of it
        row["actor/grad_norm"] = row["grad_norm"]
        # One fp32 [tokens, vocabulary] tensor of a minibatch: the head never holds it.
        rows_at_once = row["tokens"] / recipe.update.minibatches
        row["full_logits_bytes"] = int(rows_at_once * policy.head.vocab * 4)
        if change is not None:
            row |= {
                "entropy_change": change.measured,
                "entropy_change_predicted": change.predicted,
                "entropy_change_error": change.standard_error,
            }

        seconds = time.perf_counter() - began
        row |= {f"seconds/{part}": spent for part, spent in clock.seconds.items()}
        row |= {"seconds": seconds, "tokens_per_second": row["tokens"] / seconds}
        row["peak_memory_bytes"] = max(ranks.each(memory.peak))
        lines = answer_rows(experience, step, recipe.show_answers, policy.text_of, update.selected)
        ranks.first(partial(log.step, row, lines))
        rows.append(row)
        progress.step(name, recipe.steps, row, [line for line in lines if "pieces" in line])
        done = step + 1
        if every and (done % every == 0 or done == recipe.steps):
            with divergence.watched(name, step, engine.broken):
                evaluate(done)
        stopping = stop.check()
        if done == recipe.steps or done % recipe.checkpoint_every == 0 or stopping:
            divergence.check_weights(name, step, engine.broken)
            save(done)
        if stopping:
            break
    return rows
