"""Steps per second of ``sm.fit`` compared with a bare loop with the same network and loss.

The bare loop draws a batch, takes a step of AdamW as it comes, and does nothing else. The second
loop does the work of ``sm.fit``: AdamW in one kernel, clipped gradients, averaged weights. All are
timed in turn, round after round, and the median of the ratios of the rounds is quoted: 1.00 means
that the rest costs nothing.
Results: ``benchmarks/results/training_overhead.{json,md}``.

    python benchmarks/training_overhead.py
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from common.results import common_options, read_options, save
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import sde_models as sm
from sde_models.losses import denoising_score_matching

TARGET = 0.9

SIZES = {
    "small: 2-D, width 128, depth 2": ((2,), 128, 2),
    "bigger: 64-D, width 512, depth 4": ((64,), 512, 4),
}


def loop(model: sm.ScoreModel, data: Tensor, steps: int, batch: int, same_work: bool) -> None:
    """Training as written in a notebook; with ``same_work`` it does the work of ``sm.fit``."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99), fused=same_work
    )
    averaged, average = copy.deepcopy(model), get_ema_multi_avg_fn(0.995)
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (batch,))]
        loss = denoising_score_matching(model, x0)
        optimiser.zero_grad()
        loss.backward()
        if same_work:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if same_work:
            with torch.no_grad():
                average(list(averaged.parameters()), list(model.parameters()), None)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(
    shape: tuple[int, ...], width: int, depth: int, options: argparse.Namespace
) -> dict[str, float]:
    """Steps per second of the bare loop, and ratios to both loops."""
    network = sm.nn.ResidualNetwork(shape, width=width, depth=depth)
    model = sm.ScoreModel(network, sm.VPSDE())
    data, batch = torch.randn(10_000, *shape), options.batch
    loop(model, data, 5, batch, same_work=True)
    per_step = seconds(lambda: loop(model, data, 10, batch, same_work=False)) / 10
    steps = max(20, round(options.seconds / per_step))
    bare, full = [], []
    for _ in range(options.rounds):
        first = seconds(lambda: loop(model, data, steps, batch, same_work=False))
        second = seconds(lambda: loop(model, data, steps, batch, same_work=True))
        ours = seconds(lambda: sm.fit(model, data, steps=steps, batch_size=batch, progress=True))
        bare.append(first / ours)
        full.append(second / ours)
    return {
        "steps_per_second_bare": 1 / per_step,
        "ratio_to_bare_loop": statistics.median(bare),
        "ratio_to_loop_with_the_same_work": statistics.median(full),
    }


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    """A table with a row for each size."""
    lines = [
        "| network | bare loop, steps/s | fit / bare loop | fit / loop with the same work | "
        "target |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        met = "met" if row["ratio_to_bare_loop"] >= TARGET else "MISSED"
        speed, *ratios = row.values()
        cells = [name, f"{speed:.0f}", *(f"{ratio:.3f}" for ratio in ratios), f"{TARGET}: {met}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("\nSteps per second, as a share of those of the loop; medians over the rounds.")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--batch", type=int, default=256, help="samples in the batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a timed run")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
    options = read_options(parser)
    torch.manual_seed(0)
    rows = {name: measure(*size, options) for name, size in SIZES.items()}
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    settings |= {"torch": torch.__version__, "machine": platform.machine()}
    content = {"settings": settings, "sizes": rows}
    save(options.out, "training_overhead", content, as_markdown(rows))


if __name__ == "__main__":
    main()
