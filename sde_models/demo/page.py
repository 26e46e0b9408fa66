"""The page of the demonstration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_models.demo.measure import Results
from sde_models.demo.report import COLOURS, INK, Page, add_legend, image_strips, new_axes


def build_page(metrics: dict[str, Any], results: Results) -> Page:
    """Compose the page from the numbers and the data of the figures."""
    page = Page("A score model of handwritten digits")
    page.text(
        "A network learned the score of noised 8x8 digits. With it the diffusion runs backwards, "
        "as a stochastic or an ordinary differential equation, with any solver; the ordinary one "
        "runs in both directions and gives every image a latent and a likelihood."
    )
    _add_density(page, metrics, results)
    _add_samples(page, results)
    _add_interpolation(page, results.between)
    _add_round_trips(page, results)
    _add_training(page, metrics, results.trained.losses)
    return page


def _add_density(page: Page, metrics: dict[str, Any], results: Results) -> None:
    bits, gaussian = metrics["bits_per_dim"], metrics["gaussian_bits_per_dim"]
    gain = metrics["gain_over_gaussian"]
    page.heading("Likelihood")
    page.table(
        ["", "test bits/dim", "standard error"],
        [
            ["score model", f"{bits['value']:.3f}", f"{bits['stderr']:.3f}"],
            ["full-covariance Gaussian", f"{gaussian['value']:.3f}", f"{gaussian['stderr']:.3f}"],
            ["difference", f"{gain['value']:.3f}", f"{gain['stderr']:.3f}"],
        ],
        f"Bits per dimension of {len(results.x)} test images with 17 grey levels, uniformly "
        "dequantised; fewer are better. The Gaussian was fitted to the same training images.",
    )
    page.text(
        f"The model's took {bits['nfe']:g} evaluations of the network and {bits['vjps']:g} "
        f"vector-Jacobian products for each image, {bits['seconds']:.0f} seconds in all, for the "
        "exact trace. The reported error of its steps is "
        f"{bits['mean_solver_error_nats']:.2g} nats per image on average."
    )
    axes = new_axes("Bits per dimension of each test image", "bits/dim", "images")
    model, other = results.density.model.per_image.double(), results.density.gaussian.double()
    edges = np.histogram_bin_edges(torch.stack([model, other]).numpy(), bins=49).tolist()
    for values, name, colour in (
        (model, "score model", COLOURS[0]),
        (other, "Gaussian", COLOURS[1]),
    ):
        axes.hist(values.numpy(), edges, color=colour, alpha=0.6, label=name)
        axes.axvline(float(values.mean()), color=colour, linestyle="--", label=f"mean, {name}")
    add_legend(axes)
    page.figure(axes, "Each image counts once; dashed lines are means.")


def _add_samples(page: Page, results: Results) -> None:
    page.heading("Samples")
    count = len(results.runs[0].drawn.x)
    shown = min(32, count)
    strips = {"real digits": results.x[:shown]}
    strips |= {run.solver: run.drawn.x[:shown] for run in results.runs}
    page.figure(
        image_strips("Real digits and samples", strips),
        "All solvers start from the same noise, so those of the ordinary differential equation "
        "draw the same digits.",
    )
    page.table(
        ["solver", "equation", "options", "evaluations", "seconds", "error (levels)"],
        [
            [
                run.solver,
                "reverse SDE" if run.stochastic else "probability flow",
                _as_words(run.settings),
                f"{run.drawn.nfe:g}",
                f"{run.seconds:.2f}",
                "" if run.error is None else f"{run.error:.2g}",
            ]
            for run in results.runs
        ],
        f"Cost of {count} samples. Evaluations of the network are for each sample. The error is "
        "the root mean square distance to an accurate solution, in grey levels.",
    )


def _as_words(settings: dict[str, Any]) -> str:
    if "rtol" in settings:
        return f"tolerance {settings['rtol']:g}"
    grid = f", {settings['grid']} grid" if "grid" in settings else ""
    return f"{settings['steps']} steps{grid}"


def _add_interpolation(page: Page, between: Tensor) -> None:
    page.heading("Between two digits")
    count = between.shape[1]
    axes = image_strips(
        "Latent interpolation",
        {f"pair {i + 1}": row for i, row in enumerate(between)},
        columns=count,
    )
    size = between.shape[-1] + 1
    axes.set_xticks([size * i + size / 2 - 1 for i in (0, (count - 1) / 2, count - 1)])
    axes.set_xticklabels(["0", "0.5", "1"])
    axes.set_xlabel("position between the two latents", color=INK)
    page.figure(
        axes,
        "Two test digits, at the ends, and decoded latents between theirs on a great circle.",
    )


def _add_round_trips(page: Page, results: Results) -> None:
    page.heading("There and back")
    page.table(
        ["precision", "tolerance", "evaluations", "seconds", "largest error"],
        [
            [
                trip.dtype,
                f"{trip.tolerance:g}",
                f"{trip.there.nfe:g} + {trip.back.nfe:g}",
                f"{trip.seconds:.1f}",
                f"{float(trip.errors.max()):.1e}",
            ]
            for trip in results.trips
        ],
        f"{len(results.x)} test digits encoded and decoded again. Errors are in units of "
        "x, which runs from -1 to 1; a grey level is 0.12 wide.",
    )
    axes = new_axes("Round-trip error", "largest error in an image (units of x)", "images")
    errors = [trip.errors.double().clamp(min=1e-16).numpy() for trip in results.trips]
    low, high = min(e.min() for e in errors), max(e.max() for e in errors)
    edges = np.geomspace(low / 1.1, high * 1.1, 50).tolist()
    for trip, values, colour in zip(results.trips, errors, COLOURS, strict=False):
        label = f"{trip.dtype}, tolerance {trip.tolerance:g}"
        axes.hist(values, edges, color=colour, alpha=0.6, label=label)
    axes.set_xscale("log")
    add_legend(axes)
    page.figure(axes, "Each image counts once, by its worst pixel.")
    shown = 16
    page.figure(
        image_strips(
            "Before and after",
            {
                "test digits": results.x[:shown],
                "decoded": results.trips[0].back.x[:shown],
            },
        ),
        f"Test digits, and the same encoded and decoded in {results.trips[0].dtype}.",
    )


def _add_training(page: Page, metrics: dict[str, Any], losses: Tensor) -> None:
    training = metrics["training"]
    page.heading("Training")
    page.text(
        f"{training['steps']} steps of denoising score matching in {training['seconds']:.0f} "
        f"seconds, {training['steps_per_second']:.0f} a second, for {training['parameters']:,} "
        "parameters. Everything on this page uses their exponential moving average."
    )
    axes = new_axes("Training curve", "step", "loss (no unit)")
    steps = torch.arange(1, len(losses) + 1)
    thinned = slice(None, None, max(1, len(losses) // 1000))
    axes.plot(steps[thinned], losses[thinned], color=COLOURS[0], alpha=0.3, label="one batch")
    window = min(100, len(losses))
    means = losses.unfold(0, window, 1).mean(1)
    axes.plot(
        steps[window - 1 :][thinned], means[thinned], color=COLOURS[1], label=f"mean of {window}"
    )
    add_legend(axes)
    page.figure(axes, "Squared error of the preconditioned network.")
