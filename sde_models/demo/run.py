"""The demonstration: train on handwritten digits, then sample, encode, decode and score."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sde_models._utils.arguments import check_positive
from sde_models._utils.integers import check_integer
from sde_models._utils.owned_folders import OwnedFolder
from sde_models._utils.randomness import entropy_from
from sde_models.data import dequantize, digits
from sde_models.data.dequantization import DATA_RANGE
from sde_models.demo.measure import (
    Results,
    compare_samplers,
    interpolate,
    mean_and_error,
    measure_density,
    round_trip,
)
from sde_models.demo.page import build_page
from sde_models.models.model_files import save_model
from sde_models.models.score_model import ScoreModel
from sde_models.nn import ResidualNetwork
from sde_models.sdes import VPSDE
from sde_models.training import Fit, fit


@dataclass(frozen=True)
class DemoSettings:
    """Amount of work of the demonstration.

    Attributes:
        train_steps: Steps of training.
        width: Width of the network.
        depth: Number of its residual blocks.
        test_images: Number of the 360 test images that are encoded and scored, at least 2.
        samples: Samples drawn by each solver.
        tolerance: Relative and absolute tolerance of the solve that gives bits per dimension.

    Raises:
        ValueError: If a number is out of range.
    """

    train_steps: int = 3200
    width: int = 384
    depth: int = 1
    test_images: int = 360
    samples: int = 64
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_integer("test_images", self.test_images, least=2, most=360)
        for name in ("train_steps", "width", "depth", "samples"):
            check_integer(name, getattr(self, name))
        check_positive("tolerance", self.tolerance)

    @classmethod
    def quick(cls) -> DemoSettings:
        """Little work, for a look at what the demonstration does. Its figures are poor."""
        return cls(train_steps=1000, width=128, test_images=40, samples=16)


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    settings: DemoSettings | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a score model on handwritten digits and measure samples, latents and likelihoods.

    Writes ``metrics.json``, ``model.safetensors`` and ``report.html``. The same seed gives the
    same figures on the same machine, apart from times. Everything runs on one thread.

    Args:
        out: Folder to write to; made if it is not there.
        seed: Seed of everything random.
        settings: Amount of work; the full demonstration if None.
        progress: Show progress bars and messages.

    Returns:
        The content of ``metrics.json``.

    Raises:
        FileExistsError: If the folder is not empty, and holds no demonstration.
        BlockingIOError: If another process is at work in it.
        OSError: If the folder cannot be written to, before any work is done.
    """
    start = time.perf_counter()
    settings = settings or DemoSettings()
    with own_demo(out) as folder:
        folder.note("metrics.json", "model.safetensors", "report.html")
        with one_thread():
            results = _work(folder.path, seed, settings, progress)
            metrics = collect_metrics(results)
        metrics["settings"] = {"seed": seed, **asdict(settings)}
        metrics["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
        page = build_page(metrics, results)
        metrics["seconds"] = time.perf_counter() - start
        page.write(folder.path / "report.html")
        content = json.dumps(metrics, indent=2, allow_nan=False)
        folder.write("metrics.json", f"{content}\n".encode())
    return metrics


def _work(folder: Path, seed: int, settings: DemoSettings, progress: bool) -> Results:
    generator = torch.Generator().manual_seed(seed)
    data = digits()
    test = data.test[: settings.test_images]

    def say(what: str) -> None:
        if progress:
            tqdm.write(what, file=sys.stderr)

    say(f"training on {len(data.train)} digits")
    trained = train(data.train, data.levels, settings, generator=generator, progress=progress)
    model = trained.model
    save_model(folder / "model.safetensors", model)

    say("drawing samples by each solver")
    shape = (settings.samples, *test.shape[1:])
    seeds = [entropy_from(generator) for _ in range(3)]
    runs = compare_samplers(model, shape, data.levels, seed=seeds[0], progress=progress)

    say(f"encoding and decoding {len(test)} test digits")
    x = dequantize(
        test, data.levels, generator=torch.Generator().manual_seed(seeds[1]), dtype=torch.float64
    )
    trips = [
        round_trip(model, x, dtype, tolerance, progress=progress)
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-7))
    ]

    say("interpolating between latents")
    pairs = min(4, len(test) // 2)
    z = trips[0].there.z
    between = interpolate(model, z[:pairs], z[pairs : 2 * pairs], count=11, progress=progress)

    say(f"scoring {len(test)} test digits with the exact trace")
    density = measure_density(
        model, test, data.train, data.levels,
        tolerance=settings.tolerance, seed=seeds[2], progress=progress,
    )  # fmt: skip
    return Results(trained, runs, x, trips, between, density)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread inside the block.

    Small matrices gain little from a second thread, and lose a factor of ten where another process
    uses its core: the first thread then waits for it at every product. The results also no longer
    depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    images: Tensor,
    levels: int,
    settings: DemoSettings,
    *,
    generator: torch.Generator,
    progress: bool,
) -> Fit[ScoreModel]:
    """Train on images that are dequantised anew in each batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entropy_from(generator))
        network = ResidualNetwork(images.shape[1:], settings.width, settings.depth)
    # The noise at t_min is a thirtieth of a grey level. A data_std below the true 0.8 puts more
    # weight on small noise, and gave the better bits per dimension on held-out training images.
    sde = VPSDE(t_min=1e-4, data_std=0.5)
    model = ScoreModel(
        network, sde, preconditioning="edm", event_shape=tuple(images.shape[1:]),
        data_range=DATA_RANGE,
    )  # fmt: skip

    def draw(batch_size: int, generator: torch.Generator | None) -> Tensor:
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        return dequantize(images[rows], levels, generator=generator)

    # The weight decay holds back overfitting, which sets in after about 2,000 steps without.
    return fit(
        model, draw, steps=settings.train_steps, batch_size=256, learning_rate=2e-3,
        weight_decay=0.5, ema_decay=0.995, generator=generator, progress=progress,
    )  # fmt: skip


def collect_metrics(results: Results) -> dict[str, Any]:
    """Gather every number that was measured."""
    density, bits = results.density, results.density.model
    return {
        "bits_per_dim": {
            "value": float(bits.value),
            "stderr": float(bits.stderr),
            "mean_solver_error_nats": float(bits.log_prob.solver_error.nanmean()),
            "nfe": bits.nfe,
            "vjps": bits.vjps,
            "seconds": density.seconds,
        },
        "gaussian_bits_per_dim": mean_and_error(density.gaussian),
        "gain_over_gaussian": mean_and_error(density.gain),
        "round_trip": {
            trip.dtype: {
                "tolerance": trip.tolerance,
                "largest_error": float(trip.errors.max()),
                "nfe_encode": trip.there.nfe,
                "nfe_decode": trip.back.nfe,
                "seconds": trip.seconds,
            }
            for trip in results.trips
        },
        "samplers": [
            {
                "solver": run.solver,
                **run.settings,
                "nfe": run.drawn.nfe,
                "seconds": run.seconds,
                "rms_error_grey_levels": run.error,
            }
            for run in results.runs
        ],
        "training": results.trained.summary(),
    }


def summary(metrics: dict[str, Any]) -> str:
    """The main results of a run, a line each."""
    bits, gaussian = metrics["bits_per_dim"], metrics["gaussian_bits_per_dim"]
    gain, trips = metrics["gain_over_gaussian"], metrics["round_trip"]
    lines = [
        ("test bits/dim", f"{bits['value']:.3f} ± {bits['stderr']:.3f}"),
        ("of a Gaussian", f"{gaussian['value']:.3f} ± {gaussian['stderr']:.3f}"),
        ("gain", f"{gain['value']:.3f} ± {gain['stderr']:.3f}"),
        *(
            (f"round trip, {name}", f"{trip['largest_error']:.1e} at tolerance {trip['tolerance']}")
            for name, trip in trips.items()
        ),
        *(
            (run["solver"], f"{run['nfe']:g} evaluations, {run['seconds']:.1f} s")
            for run in metrics["samplers"]
        ),
        ("training", f"{metrics['training']['seconds']:.0f} s"),
        ("all", f"{metrics['seconds']:.0f} s"),
    ]
    return "\n".join(f"{name:<22}{value}" for name, value in lines)


def own_demo(out: str | os.PathLike[str]) -> OwnedFolder:
    """The folder of a demonstration, to be entered; one given as an object is returned."""
    return out if isinstance(out, OwnedFolder) else OwnedFolder(out, "a demonstration")
