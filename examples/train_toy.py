"""Train a score model on points in the plane, save it, sample, and evaluate held-out points.

    python examples/train_toy.py --toy checkerboard --out runs/toy

Writes ``model.safetensors``, for ``sm.load_model`` and the command line, and ``samples.png``.
Fine structure, as in rings, needs more steps.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import sde_models as sm


def draw_panels(path: Path, panels: dict[str, torch.Tensor]) -> None:
    """Sets of points side by side, in one picture."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 4.5), sharex=True, sharey=True)
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(*points.T, s=2, linewidths=0)
        axis.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", choices=list(sm.data.TOYS), default="two-moons")
    parser.add_argument("--steps", type=int, default=2000, help="steps of training")
    parser.add_argument("--width", type=int, default=128, help="width of the network")
    parser.add_argument("--held-out", type=int, default=500, help="new points to evaluate")
    parser.add_argument("--tol", type=float, default=0.05, help="tolerance in nats per point")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    network = sm.nn.ResidualNetwork((2,), width=arguments.width, depth=2)
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-4), preconditioning="edm", event_shape=(2,))
    # A toy can be sampled without end, so every batch is new; a tensor of data works as well.
    model = sm.fit(
        model, lambda n, source: sm.data.toy(arguments.toy, n, generator=source),
        steps=arguments.steps, learning_rate=4e-3, ema_decay=0.99, generator=generator,
    ).model  # fmt: skip
    sm.save_model(arguments.out / "model.safetensors", model)

    held_out = sm.data.toy(arguments.toy, max(2000, arguments.held_out), generator=generator)
    out = sm.sample(model, (2000, 2), solver="dpmpp-2m", steps=25, generator=generator)
    print(f"{len(out.x)} samples with {out.nfe:g} evaluations of the network")
    draw_panels(arguments.out / "samples.png", {"data": held_out[:2000], "samples": out.x})

    lp = sm.log_prob(model, held_out[: arguments.held_out], tol=arguments.tol, generator=generator)
    mean, stderr = float(lp.value.mean()), float(lp.value.std()) / len(lp.value) ** 0.5
    print(f"held-out log-density {mean:.3f} ± {stderr:.3f} nats (standard error), each of the")
    print(f"  {len(lp.value)} computed to within {float(lp.error.max()):.3f}, for {lp.cost}")
    print(f"model and picture are in {arguments.out}")


if __name__ == "__main__":
    main()
