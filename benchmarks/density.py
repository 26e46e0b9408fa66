"""Densities of real images, compared with normalizing flows of equal training time and cores.

Handwritten digits, 8 x 8 with 17 grey levels: 1,437 to train on, 360 to test. Score models of
this library, by the probability flow with its error bars, and zuko's spline flow, RealNVP and MAF,
by maximum likelihood; all under uniform dequantisation, and also a score model trained at the
centres of the levels under truncated-normal dequantisation. Settings were chosen on the last 200
training images. Results go to ``benchmarks/results/density.{json,md,png}``.

    python benchmarks/density.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import zuko
from common.results import common_options, empty_figure, read_options, save
from matplotlib.figure import Figure
from torch import Tensor

import sde_models as sm
from sde_models.data import dequantize, digits
from sde_models.likelihood.bits_per_dimension import bits_from_log_prob

LEVELS = 17
BATCH = 128
DRAWS = 4
"""Dequantisations that the bits of each test image are averaged over."""
MOMENTS = 10
"""How often a flow is tested while it trains."""
Row = dict[str, Any]


def centres(images: Tensor) -> Tensor:
    """Numbers in the middle of the cells of grey levels."""
    return -1 + (2 * images.float() + 1) / LEVELS


def score_model(
    images: Tensor, test: Tensor, seconds: float, network: torch.nn.Module, *, dequantization: str
) -> Row:
    """Train a score model, and compute bits per dimension by its probability flow."""
    uniform = dequantization == "uniform"
    # At the centres of the cells the noise at t_min is what fills them: a third of half a level.
    sde = sm.VPSDE(t_min=1e-4 if uniform else 4e-3, data_std=0.5)
    model = sm.ScoreModel(network, sde, preconditioning="edm", event_shape=(1, 8, 8))

    def draw(batch_size: int, generator: torch.Generator | None) -> Tensor:
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        chosen = images[rows]
        return dequantize(chosen, LEVELS, generator=generator) if uniform else centres(chosen)

    trained = sm.fit(
        model, draw, seconds=seconds, batch_size=BATCH, learning_rate=3e-3, weight_decay=0.01,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    start = time.perf_counter()
    bits = sm.bits_per_dim(
        trained.model, test, LEVELS, dequantization, repeats=DRAWS, tol=1.0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return {
        "bits": float(bits.value),
        "stderr": float(bits.stderr),
        "numerical": float(bits.probe_stderr + bits.solver_error),
        "steps": trained.steps,
        "train_seconds": trained.seconds,
        "test_seconds": time.perf_counter() - start,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def flow_model(images: Tensor, test: Tensor, seconds: float, flow: torch.nn.Module) -> Row:
    """Train a normalizing flow by maximum likelihood, and stop at the best moment.

    Flows overfit so few images. Raw and averaged weights are tested at ten moments, with the clock
    stopped, and the best bits are kept: chosen on the test images, so in favour of the flow.
    """
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=0.01)
    averaged = torch.optim.swa_utils.AveragedModel(
        flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    elapsed, steps, found = 0.0, 0, []
    for moment in range(1, MOMENTS + 1):
        flow.train()
        start = time.perf_counter() - elapsed
        while (elapsed := time.perf_counter() - start) < seconds * moment / MOMENTS:
            for group in optimiser.param_groups:
                group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * elapsed / seconds))
            rows = torch.randint(len(images), (BATCH,), generator=generator)
            x = dequantize(images[rows], LEVELS, generator=generator).flatten(1)
            loss = -flow().log_prob(x).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimiser.step()
            averaged.update_parameters(flow)
            steps += 1
        found += [(elapsed, steps, _bits(one, test)) for one in (flow, averaged.module)]
    train_seconds, best_steps, best = min(found, key=lambda moment: float(moment[2].mean()))
    return {
        "bits": float(best.mean()),
        "bits_at_the_end": min(float(bits.mean()) for *_, bits in found[-2:]),
        "stderr": float(best.std() / math.sqrt(len(best))),
        "numerical": 0.0,
        "steps": best_steps,
        "train_seconds": train_seconds,
        "test_seconds": 0.0,
        "parameters": sum(p.numel() for p in flow.parameters()),
    }


@torch.no_grad()
def _bits(flow: torch.nn.Module, test: Tensor) -> Tensor:
    """Bits per dimension of each test image, averaged over draws."""
    flow.eval()
    generator = torch.Generator().manual_seed(1)
    draws = [
        flow().log_prob(dequantize(test, LEVELS, generator=generator).flatten(1))
        for _ in range(DRAWS)
    ]
    return bits_from_log_prob(torch.stack(draws).mean(0), 64, 2 / LEVELS)


def contestants(seconds: float) -> dict[str, Callable[[Tensor, Tensor], Row]]:
    """Name and work of everything that is compared."""

    def score(make: Callable[[], torch.nn.Module], dequantization: str) -> Any:
        return lambda train, test: score_model(
            train, test, seconds, make(), dequantization=dequantization
        )

    def flow(make: Callable[[], torch.nn.Module]) -> Any:
        return lambda train, test: flow_model(train, test, seconds, make())

    def mixing() -> torch.nn.Module:
        return sm.nn.MixingNetwork((1, 8, 8), width=32, depth=3)

    def residual() -> torch.nn.Module:
        return sm.nn.ResidualNetwork((1, 8, 8), width=384, depth=1)

    hidden = {"transforms": 5, "hidden_features": (256, 256)}
    return {
        "score model, mixing network, uniform": score(mixing, "uniform"),
        "score model, mixing network, truncated normal": score(mixing, "truncated-normal"),
        "score model, residual network, uniform": score(residual, "uniform"),
        "neural spline flow, uniform": flow(lambda: zuko.flows.NSF(64, **hidden)),
        "MAF, uniform": flow(lambda: zuko.flows.MAF(64, **hidden)),
        "RealNVP, uniform": flow(lambda: zuko.flows.RealNVP(64, **hidden)),
    }


def as_markdown(rows: list[Row]) -> str:
    """Everything, and whether the target is met."""
    bits = {row["name"]: row["bits"] for row in rows}
    ours, spline = bits.get("score model, mixing network, uniform"), bits.get(
        "neural spline flow, uniform"
    )  # fmt: skip
    lines = [
        "Bits per dimension of 360 test digits; smaller is better. Score models are taken as they",
        "are at the end. Flows are taken at the best of ten moments, chosen on the test digits; in",
        "brackets what they end with.", "",
        "| model | bits/dim | over images | numerical | steps | seconds of training | parameters |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {r['name']} | {r['bits']:.3f}{_at_the_end(r)} | {r['stderr']:.3f} "
        f"| {r['numerical']:.3f} | {r['steps']} | {r['train_seconds']:.0f} | {r['parameters']:,} |"
        for r in rows
    ]
    if ours is not None and spline is not None:
        met = "reached" if ours < spline else "missed"
        lines += ["", f"Below the spline flow under the same dequantisation: {met}."]
    return "\n".join(lines)


def _at_the_end(row: Row) -> str:
    return f" ({row['bits_at_the_end']:.3f})" if "bits_at_the_end" in row else ""


def plot(rows: list[Row]) -> Figure:
    """A bar for each."""
    figure = empty_figure(7, 3)
    panel = figure.subplots()
    names = [row["name"] for row in rows][::-1]
    panel.barh(
        names, [row["bits"] for row in rows][::-1], xerr=[row["stderr"] for row in rows][::-1]
    )
    panel.set(xlabel="bits per dimension of test digits", xlim=(1.5, None))
    return figure


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__, threads=2)
    parser.add_argument("--seconds", type=float, default=90, help="training time of each")
    parser.add_argument("--validate", action="store_true", help="test on held-out training images")
    options = read_options(parser)
    data = digits()
    train, test = data.train, data.test
    if options.validate:
        train, test = train[:1237], train[1237:]
    rows = []
    for name, work in contestants(options.seconds).items():
        torch.manual_seed(0)
        rows.append({"name": name} | work(train, test))
        print(f"{name}: {rows[-1]['bits']:.3f}", flush=True)
    save(options.out, "density", rows, as_markdown(rows), plot(rows))


if __name__ == "__main__":
    main()
