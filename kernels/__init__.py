"""Triton kernels of logitless. They import torch and triton only; one kernel a file."""
