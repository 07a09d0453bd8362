"""What is written is whole, and what cannot be written is said in one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from logitless.cli import main
from logitless.rl.demo.job import run
from logitless.rl.tracking import checkpoint, files, metrics
from tests.support.recipes import tiny_file, tiny_recipe
from tests.support.rl.runs_alike import assert_same

ONE = ("compare_repeats=0", "checkpoint_every=1", "methods={grpo: {preset: grpo}}")
FULL = "I/O error: No space left on device (os error 28)"


def no_room(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_the_old_one_until_it_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.json"
    files.write(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(files.NotWritten, match=rf"cannot write {file}, 3 bytes: No space left"):
            files.write(file, "new")
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]
    with pytest.raises(ZeroDivisionError), files.replaced(file) as part:
        part.write_text(f"{1 // 0}")
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]
    files.write(file, "new")
    assert file.read_text() == "new" and [*tmp_path.iterdir()] == [file]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_line_that_has_no_room_is_an_error_with_path_and_bytes() -> None:
    with pytest.raises(files.NotWritten) as caught:
        metrics.append(Path("/dev/full"), {"step": 1})
    assert str(caught.value) == (
        "cannot write /dev/full, 12 bytes: No space left on device; "
        "free some space, and go on with --resume"
    )


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EROFS, "x"), errno.EROFS),
        (RuntimeError(FULL), errno.ENOSPC),
        (ValueError("28"), None),
        (OSError("x"), None),
    ],
)
def test_errors_of_libraries_have_the_system_s_number(error: Exception, number: int | None) -> None:
    assert files.number_of(error) == number
    with pytest.raises(files.NotWritten if number else type(error)), files.writing(Path("x")):
        raise error


def test_a_full_disk_is_a_line_and_the_last_checkpoint_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a writer that fails as transformers' does."""
    from safetensors import SafetensorError
    from transformers import modeling_utils

    out, recipe = tmp_path / "run", str(tiny_file(tmp_path))
    assert main(["train", recipe, *ONE, "steps=2", "--out", str(out)]) == 0
    assert main(["train", recipe, *ONE, "steps=4", "--out", str(tmp_path / "whole")]) == 0
    capsys.readouterr()

    def full(*arguments: Any, **options: Any) -> None:
        raise SafetensorError(f"Error while serializing: {FULL}")

    again = ["train", recipe, *ONE, "steps=4", "--out", str(out), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(modeling_utils, "safe_save_file", full)
        assert main(again) == os.EX_IOERR
    error = capsys.readouterr().err
    # embedding and head 384 x 16 each; a layer of 4 x 16^2 + 3 x 16 x 32 and norms of 3 x 16
    size = 4 * (2 * 384 * 16 + 4 * 16**2 + 3 * 16 * 32 + 3 * 16)
    assert f"checkpoint-000003.part, {size:,} bytes: No space left on device; free" in error
    assert error.count("\n") == 1
    left = sorted(path.name for path in (out / "grpo").glob("checkpoint-*"))
    assert left == ["checkpoint-000001", "checkpoint-000002"]
    assert main(again) == 0
    assert_same(out, tmp_path / "whole", ["grpo"])


LIMITED = """
import resource, sys
from logitless.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def test_files_that_may_not_be_as_large(tmp_path: Path) -> None:
    """The real writers, and a limit in place of a full disk."""
    out, recipe = tmp_path / "run", str(tiny_file(tmp_path))
    wide = (*ONE, "model.hidden_size=64", "rollout.prompts=1", "rollout.group=4")
    assert main(["train", recipe, *wide, "steps=1", "--out", str(out)]) == 0
    again = ["train", recipe, *wide, "steps=2", "--out", str(out), "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "100000", *again],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == os.EX_IOERR, done.stderr
    assert "bytes: File too large; raise the limit" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in (out / "grpo").glob("checkpoint-*")] == ["checkpoint-000001"]
    assert main(again) == 0


def test_a_folder_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    recipe, out = str(tiny_file(tmp_path)), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        assert main(["train", recipe, *ONE, "--out", str(out)]) == os.EX_IOERR
    error = capsys.readouterr().err
    assert error == (
        f"logitless: cannot write {out}: Read-only file system; choose a folder that can be "
        "written, by --out, or change its permissions\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(files.NotWritten, match=r"run\.lock: Permission denied; choose a folder"):
        run(tiny_recipe(tmp_path, *ONE), tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run" / "grpo") is None
