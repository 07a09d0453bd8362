"""Triton kernels of logitless: one kernel and its launcher a file, `rows` on top of them.

They import torch and triton only.
"""
