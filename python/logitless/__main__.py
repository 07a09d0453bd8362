"""`python -m logitless` is the `logitless` command."""

from __future__ import annotations

import sys

from logitless.cli import main

sys.exit(main())
