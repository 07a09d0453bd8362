"""`python -m logitless` is the `logitless` command."""

from __future__ import annotations

import os
import sys

from logitless.cli import main

status = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
