"""The device that a trainer is asked to run on."""

from __future__ import annotations

import argparse
import os

import torch

DEVICES = ("cpu", "cuda")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="cpu")


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} finds no CUDA device")


def environment(device: str) -> dict[str, str]:
    """Of a process that runs there: one GPU, for Trainer would share a batch among several."""
    return {**({} if device == "cpu" else {"CUDA_VISIBLE_DEVICES": "0"}), **os.environ}
