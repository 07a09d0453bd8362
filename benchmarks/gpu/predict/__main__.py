from __future__ import annotations

from benchmarks.gpu.predict.table import main

main()
