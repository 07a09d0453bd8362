from __future__ import annotations

import importlib
import sys

from tests.simt import problem
from tests.simt.checks import CHECKS

sys.path.insert(0, sys.argv[1])
problem.module = importlib.import_module("simt_rows")
for name in sys.argv[2:]:
    CHECKS[name]()
