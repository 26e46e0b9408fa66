"""Train a tiny model, be killed again and again, and go on; the results are printed as JSON.

    python tests/support/killed_runs.py FOLDER KILLS

Everything is imported once, and each part of the run is a fork of this process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sde_models.models.score_model import ScoreModel
from sde_models.nn import ResidualNetwork
from sde_models.sdes import VPSDE
from sde_models.training import fit
from sde_models.training.checkpoints import CheckpointFolder

STEPS = 200


def train(out: Path) -> None:
    """The run: it ends with a checkpoint of its last step."""
    torch.manual_seed(0)
    model = ScoreModel(ResidualNetwork((2,), width=8, depth=1), VPSDE())
    data = torch.randn(64, 2)
    fit(
        model, data, steps=STEPS, batch_size=8, seed=1, out=out, checkpoint_every=5, keep=2,
        progress=False,
    )  # fmt: skip


def start(out: Path) -> int:
    """Train in a fork; return its process."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            train(out)
            status = 0
        finally:
            os._exit(status)
    return process


def finish(out: Path) -> None:
    """Train to the end."""
    _, status = os.waitpid(start(out), 0)
    if status:
        raise SystemExit(f"training ended with status {status}")


def main() -> None:
    """Run, killed and not, and compare."""
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.optim.AdamW([torch.zeros(1)])  # the first one imports for seconds
    moment = random.Random(0)
    began = time.perf_counter()
    finish(folder / "whole")
    lasted = time.perf_counter() - began
    steps, half_written = [], 0
    out = folder / "killed"
    while len(steps) < kills:
        process = start(out)
        time.sleep(moment.uniform(0, 1.2 * lasted / kills))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            break
        half_written += any(out.glob(".step-*"))
        checkpoints = CheckpointFolder(out)
        # Before the first checkpoint there is nothing to lose.
        found = checkpoints.newest() if checkpoints.steps() else None
        if steps and max(steps) > 0 and found is None:
            raise SystemExit("a kill left no readable checkpoint")
        steps.append(0 if found is None else found[0])
    finish(out)
    ends = [CheckpointFolder(folder / name).read(STEPS) for name in ("whole", "killed")]
    same = [
        all(torch.equal(a[name], b[name]) for name in a)
        for a, b in (
            (ends[0].weights, ends[1].weights),
            (ends[0].averaged, ends[1].averaged),
            ({"": ends[0].state["losses"]}, {"": ends[1].state["losses"]}),
        )
    ]
    print(json.dumps({"steps": steps, "half_written": half_written, "same": same}))


if __name__ == "__main__":
    main()
