"""What the `logitless` command takes: its commands, their options, and what --help says."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitless._version import __version__

# What `logitless COMMAND --help` ends with.
EXAMPLES = {
    "demo": """
logitless demo
logitless demo steps=10 'seeds=[0, 1, 2]' --out runs/seeds""",
    "train": """
logitless train short
logitless train my.yaml update.body_lr=1e-5 methods.grpo.change.surrogate.high=0.28 --dry-run
logitless train my.yaml steps=100 --resume""",
    "eval": """
logitless eval runs/my
logitless eval runs/my/grpo evaluation.prompts=200 evaluation.group=16""",
    "report": """
logitless report runs/my
logitless report runs/my runs/other --out runs/both""",
    "sample": """
logitless sample runs/my/grpo 'sum 17:' -n 4
logitless sample my-model 'The capital of France is' --temperature 0.7 --max-new-tokens 8""",
    "check": """
logitless check my-model""",
    "doctor": """
logitless doctor""",
    "plan": """
logitless plan --tokens 8192 --hidden 4096 --vocab 151936
logitless plan --tokens 8192 --hidden 4096 --vocab 151936 --dtype bfloat16 --device H200""",
    "recipe": """
logitless recipe
logitless recipe --markdown > recipe.md""",
    "losses": """
logitless losses
logitless losses --markdown > losses.md""",
    "advantages": """
logitless advantages
logitless advantages --markdown > advantages.md""",
    "preference": """
logitless preference
logitless preference --markdown > preference.md""",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes positionals in one run: overrides after an option come back as left over."""
    parser = make_parser()
    options, left = parser.parse_known_args(arguments)
    overrides = getattr(options, "overrides", None)
    if any(argument.startswith("-") for argument in left) or (left and overrides is None):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if overrides is not None:
        options.overrides = [*overrides, *left]
    return options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="logitless",
        description="RL losses, entropy and its control for language models, without logits held.",
    )
    parser.add_argument("--version", action="version", version=f"logitless {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )

    demo = _command(
        commands, "demo", "the main job: GRPO, Clip-Cov and KL-Cov on a small policy, with a report"
    )
    demo.set_defaults(recipe="demo")
    _run_options(demo)

    train = _command(commands, "train", "train by a recipe: a YAML file or a bundled name")
    train.add_argument(
        "recipe", metavar="RECIPE", help="path of a YAML file, or demo, short, smollm2"
    )
    _run_options(train)

    evaluation = _command(
        commands, "eval", "pass@k, greedy answers and entropy of a run's newest checkpoints"
    )
    evaluation.add_argument("folder", type=Path, help="a run's folder, or that of one method in it")
    evaluation.add_argument(
        "overrides", nargs="*", metavar="key=value", help="like evaluation.prompts=200"
    )

    report = _command(
        commands, "report", "the report of a run as far as it has come, or of several side by side"
    )
    report.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run's folder: of one that goes on, too",
    )
    report.add_argument(
        "--out", type=Path, default=Path("runs", "report"),
        help="where the report of several runs goes (runs/report)",
    )  # fmt: skip

    sample = _command(commands, "sample", "answers of a trained policy")
    sample.add_argument(
        "folder",
        type=Path,
        help="a method's run folder, a checkpoint, or any causal LM: folder, GGUF file, smollm2",
    )
    sample.add_argument(
        "prompt",
        help="the prompt's text, like 'sum 17:'; in the run's chat template, where it has one",
    )
    sample.add_argument("-n", type=_at_least_1, default=8, help="how many answers (8)")
    sample.add_argument("--max-new-tokens", type=_at_least_1, help="(the run's; 16 without a run)")
    sample.add_argument("--temperature", type=_above_0, help="(the run's; 1.0 without a run)")
    sample.add_argument("--seed", type=int, default=0, help="(0)")

    check = _command(
        commands, "check", "the head of a Hugging Face model, as the head ops take it, or why not"
    )
    check.add_argument("folder", type=Path, metavar="MODEL", help="a folder with its config.json")

    _command(commands, "doctor", "versions, instruction sets, and which backend serves what")

    plan = _command(commands, "plan", "memory and products of one linear_policy_loss call")
    plan.add_argument("--tokens", type=int, required=True, help="rows of hidden states of the call")
    plan.add_argument("--hidden", type=int, required=True, help="width of a hidden state")
    plan.add_argument("--vocab", type=int, required=True, help="rows of the head's weight")
    plan.add_argument("--dtype", default="float32", help="float32, bfloat16, ... (float32)")
    plan.add_argument(
        "--budget", default=None, help="bytes, or like 256MiB (the library's default)"
    )
    plan.add_argument(
        "--device", default="cpu", help="cpu, cuda, or a GPU that need not be here: H200, ... (cpu)"
    )
    plan.add_argument(
        "--tail-mass",
        type=float,
        default=0.0,
        help="probability that a row's largest entries may leave out of its gradient (0: exact)",
    )
    plan.add_argument(
        "--expected-served",
        type=float,
        default=0.0,
        help="with --tail-mass: the share of rows that one expects to need no other backward (0)",
    )

    recipe = _command(commands, "recipe", "the table of a recipe's keys")
    recipe.add_argument("--markdown", action="store_true", help="as docs/recipe.md")

    losses = _command(commands, "losses", "the table of presets")
    losses.add_argument("--markdown", action="store_true", help="as docs/losses.md")

    advantages = _command(commands, "advantages", "the table of advantages")
    advantages.add_argument("--markdown", action="store_true", help="as docs/advantages.md")

    preference = _command(commands, "preference", "the table of preference losses")
    preference.add_argument("--markdown", action="store_true", help="as docs/preference.md")
    return parser


def _at_least_1(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")


def _above_0(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    lines = EXAMPLES[name].strip().splitlines()
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about,
        epilog="\n  ".join(["examples:" if lines[1:] else "example:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return made


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the recipe, like rollout.group=8; `logitless recipe` lists all keys",
    )
    parser.add_argument("--out", type=Path, default=None, help="the run folder (runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="go on with the folder's run")
    parser.add_argument("--overwrite", action="store_true", help="delete the folder's run first")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the recipe with all its values and what would be run, and write nothing",
    )
