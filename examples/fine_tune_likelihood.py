"""Train by denoising, fine-tune on the likelihood itself, and measure the gain.

    python examples/fine_tune_likelihood.py --toy two-moons --fine-tuning 300

A step of fine-tuning solves the probability flow, with its traces, and differentiates through both:
expensive, so it is for the end. As a control the same model continues with denoising for as many
steps. All are measured on the same held-out points.
"""

import argparse
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch

import sde_models as sm


def pretrain(arguments: argparse.Namespace, data: torch.Tensor) -> sm.ScoreModel:
    torch.manual_seed(arguments.seed)
    network = sm.nn.ResidualNetwork((2,), width=arguments.width, depth=2)
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3), preconditioning="edm", event_shape=(2,))
    return sm.fit(
        model, data, steps=arguments.steps, learning_rate=4e-3, ema_decay=0.99, seed=arguments.seed
    ).model  # fmt: skip


def likelihood(
    model: sm.Model, x0: torch.Tensor, *, intervals: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Minus the mean log-density, with a graph through the steps and the traces.

    With too few intervals the optimiser learns to exploit errors of the quadrature: the loss falls,
    and the density of held-out points does not rise. For more than a few dimensions add
    ``divergence=sm.Hutchinson(1)``: the gradient stays unbiased.
    """
    return sm.maximum_likelihood_loss(
        model, x0, "dpmpp-2m", steps=intervals, intervals=intervals, generator=generator
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", choices=list(sm.data.TOYS), default="checkerboard")
    parser.add_argument("--model", type=Path, help="file of sm.save_model; default: train one")
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps of training, without --model"
    )
    parser.add_argument(
        "--width", type=int, default=64, help="width of the network, without --model"
    )
    parser.add_argument("--fine-tuning", type=int, default=200, help="steps of fine-tuning")
    parser.add_argument("--intervals", type=int, default=32, help="steps and intervals of the loss")
    parser.add_argument("--held-out", type=int, default=1000, help="new points for the measurement")
    parser.add_argument("--tol", type=float, default=0.02, help="tolerance in nats per point")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuned.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    data = sm.data.toy(arguments.toy, 10_000, generator=generator)
    held_out = sm.data.toy(arguments.toy, arguments.held_out, generator=generator)
    before = sm.load_model(arguments.model) if arguments.model else pretrain(arguments, data)

    def fine_tune(loss: sm.training.Loss) -> sm.training.Fit[sm.ScoreModel]:
        return sm.fit(
            deepcopy(before), data, steps=arguments.fine_tuning, batch_size=128, loss=loss,
            learning_rate=1e-3, ema_decay=0.95, warmup=10, seed=arguments.seed,
        )  # fmt: skip

    def measure(model: sm.ScoreModel) -> sm.LogProb:
        return sm.log_prob(model, held_out, tol=arguments.tol, generator=generator)

    tuned = fine_tune(partial(likelihood, intervals=arguments.intervals))
    control = fine_tune(sm.losses.denoising_score_matching)
    first, more, last = (measure(model) for model in (before, control.model, tuned.model))
    print(f"held-out log-density of {len(held_out)} points, in nats, ± standard error:")
    for name, lp in (("before", first), ("more denoising", more), ("fine-tuned", last)):
        stderr = float(lp.value.std()) / len(held_out) ** 0.5
        print(f"  {name:<15}{float(lp.value.mean()):8.4f} ± {stderr:.4f}")
    loss = float(tuned.losses[-20:].mean())
    print(f"  {'minus the loss':<15}{-loss:8.4f} at the end of fine-tuning, on training points")
    # The points are the same, so that their spread cancels in the difference.
    for name, lp in (("more denoising", more), ("fine-tuning", last)):
        gain = lp.value - first.value
        numerical = float((lp.error + first.error).mean())
        print(
            f"gain by {name:<15}{float(gain.mean()):+8.4f} ± "
            f"{float(gain.std()) / len(gain) ** 0.5:.4f}, computed to within {numerical:.4f}"
        )
    sm.save_model(arguments.out, tuned.model)
    print(f"the fine-tuned model is {arguments.out}")


if __name__ == "__main__":
    main()
