"""One optimizer step of verl's engine on one of several ranks.

python -m tests.plugins.verl.rank_step RANK WORLD PORT MODEL MODE MICRO_BATCHES OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def taken(rank: int, world: int, folder: Path, mode: str, micro_batches: int) -> dict[str, Any]:
    """Gradients and metrics of this rank's part of the batch."""
    from dataclasses import replace

    from verl.utils import tensordict_utils as tu

    import logitless as ll
    from tests.plugins.verl.engines import ROWS, actor_config, data, engine, off_policy, step
    from tests.plugins.verl.setting import ours

    made = engine(folder, "logitless")
    control = ll.ClipCov(fraction=0.2, low=0.05, high=50.0)
    ours.register("loose", replace(ll.presets["clip_cov"], control=control))
    td = data()
    td = off_policy(td, -td["noise"].abs() - 0.5)
    rows = list(range(rank * ROWS // world, (rank + 1) * ROWS // world))
    found = step(
        made, tu.index_select_tensor_dict(td, rows), actor_config(mode), micro_batches, of_all=ROWS
    )
    return {"gradients": found.gradients, "metrics": found.metrics}


def main() -> None:
    given = sys.argv[1:]
    rank, world, port = map(int, given[:3])
    folder, mode, micro_batches, out = Path(given[3]), given[4], int(given[5]), Path(given[6])
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import torch

    torch.distributed.init_process_group("gloo")
    found = taken(rank, world, folder, mode, micro_batches)
    if rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main()
