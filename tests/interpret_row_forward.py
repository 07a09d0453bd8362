"""Not a test: runs the Triton row forward in Triton's interpreter, in a process of its own because
that must be on before triton is imported. Reads a list of argument dicts, writes the results.

    python interpret_row_forward.py ARGUMENTS.pt RESULTS.pt
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from logitless.kernels.row_forward import row_forward

# torch.empty then comes filled with NaN: what a kernel forgets to write is no number.
torch.use_deterministic_algorithms(True)

arguments = torch.load(sys.argv[1], weights_only=False)
torch.save([tuple(row_forward(**a)) for a in arguments], sys.argv[2])
