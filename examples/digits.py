"""Train a score model on handwritten digits, save it, and use it.

    python examples/digits.py --steps 1500 --out runs/digits.safetensors

Takes a minute on a laptop. The full demonstration, with a page of results, is `sde-models demo`.
"""

import argparse
from pathlib import Path

import torch

import sde_models as sm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="steps of training")
    parser.add_argument("--width", type=int, default=256, help="width of the network")
    parser.add_argument("--images", type=int, default=100, help="test images to evaluate")
    parser.add_argument("--out", default="runs/digits.safetensors", help="file for the model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    digits = sm.data.digits()

    # Any torch.nn.Module called as network(t, x) can be used.
    network = sm.nn.ResidualNetwork((1, 8, 8), width=arguments.width, depth=1)
    sde = sm.VPSDE(t_min=1e-4, data_std=0.5)
    model = sm.ScoreModel(network, sde, preconditioning="edm", event_shape=(1, 8, 8))

    # The grey levels of a batch get new noise each time it is drawn.
    def draw(batch_size: int, generator: torch.Generator | None) -> torch.Tensor:
        rows = torch.randint(len(digits.train), (batch_size,), generator=generator)
        return sm.data.dequantize(digits.train[rows], digits.levels, generator=generator)

    result = sm.fit(model, draw, steps=arguments.steps, weight_decay=0.5)
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    sm.save_model(arguments.out, result.model)  # the averaged weights
    model = sm.load_model(arguments.out)

    for solver, steps in (("euler-maruyama", 200), ("ode:rk4", 20), ("ode:dopri5", None)):
        out = sm.sample(model, (16, 1, 8, 8), solver=solver, steps=steps)
        levels = sm.data.quantize(out.x, digits.levels)
        print(f"{solver}: {out.cost}")
    for row in levels[0, 0].tolist():
        print("".join(" .:-=+*#%@"[value * 9 // 16] * 2 for value in row))

    bits = sm.bits_per_dim(
        model, digits.test[: arguments.images], digits.levels, rtol=1e-3, atol=1e-3, progress=True
    )
    print(f"test bits/dim {float(bits.value):.3f} ± {float(bits.stderr):.3f}")


if __name__ == "__main__":
    main()
