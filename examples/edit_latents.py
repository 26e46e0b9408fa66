"""Edit images by their latents: encode, interpolate, scale, shift, and decode.

    python examples/edit_latents.py --model runs/digits.safetensors --source 4 --target 9

Without ``--model`` one is trained on handwritten digits. The result is a picture. A
nearest-neighbour classifier counts how many edited digits read as the target class.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.neighbors import KNeighborsClassifier

import sde_models as sm

DIGITS = sm.data.digits()
COLUMNS = 9


def train(arguments: argparse.Namespace) -> sm.ScoreModel:
    torch.manual_seed(arguments.seed)
    network = sm.nn.ResidualNetwork((1, 8, 8), width=arguments.width, depth=1)
    sde = sm.VPSDE(t_min=1e-4, data_std=0.5)
    model = sm.ScoreModel(network, sde, preconditioning="edm", event_shape=(1, 8, 8))
    return sm.fit(
        model, sm.data.find_data("digits").batches(), steps=arguments.steps, weight_decay=0.5,
        seed=arguments.seed,
    ).model  # fmt: skip


def slerp(a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate latents along a sphere: the straight line would pass too close to zero."""
    angle = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).acos()
    s = torch.linspace(0, 1, count).reshape(-1, *[1] * a.ndim)
    return (((1 - s) * angle).sin() * a + (s * angle).sin() * b) / angle.sin()


def picture(path: Path, rows: dict[str, torch.Tensor]) -> None:
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 0.75 * len(rows)))
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        strip = torch.nn.functional.pad(images[:COLUMNS, 0], (0, 1), value=1.0)
        axis.imshow(strip.permute(1, 0, 2).flatten(1), cmap="gray", vmin=-1, vmax=1)
        axis.set_axis_off()
        axis.text(-1, 3.5, name, ha="right", va="center")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="file of sm.save_model, trained on digits")
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps of training, without --model"
    )
    parser.add_argument(
        "--width", type=int, default=256, help="width of the network, without --model"
    )
    parser.add_argument("--source", type=int, default=4, help="digit to edit")
    parser.add_argument("--target", type=int, default=9, help="digit to move it towards")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 0.8, 1.2])
    parser.add_argument("--solver", default="adams-batch", help="one of sm.list_solvers()")
    parser.add_argument("--tol", type=float, default=1e-3, help="its tolerance")
    parser.add_argument("--out", type=Path, default=Path("runs/latents.png"), help="picture")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with torch.enable_grad():
        model = sm.load_model(arguments.model) if arguments.model else train(arguments)
    solver = {"solver": arguments.solver, "rtol": arguments.tol, "atol": arguments.tol}
    generator = torch.Generator().manual_seed(arguments.seed)
    known = sm.data.dequantize(DIGITS.train, DIGITS.levels, generator=generator)
    images = sm.data.dequantize(DIGITS.test, DIGITS.levels, generator=generator)
    images = images[DIGITS.test_labels == arguments.source]

    encoded = sm.encode(model, images, **solver)
    back = sm.decode(model, encoded.z, **solver)
    error = float((back.x - images).abs().max())
    print(f"round trip of {len(images)} images: largest error {error:.1e}, of a range of 2,")
    print(f"  for {encoded.nfe + back.nfe:g} evaluations of the network")
    rows = {"images": images, "decoded": back.x}

    path = slerp(encoded.z[0], encoded.z[1], COLUMNS)
    rows["first to second"] = sm.decode(model, path, **solver).x
    for tau in arguments.temperatures:
        rows[f"temperature {tau:g}"] = x = sm.decode(model, tau * encoded.z, **solver).x
        print(f"temperature {tau:g}: spread {float(x.std(0).mean() / images.std(0).mean()):.2f} "
              "of that of the images")  # fmt: skip

    # An attribute is a direction, from the mean latent without it to the mean latent with it.
    means = [
        sm.encode(model, known[DIGITS.train_labels == digit], **solver).z.mean(0)
        for digit in (arguments.source, arguments.target)
    ]
    reader = KNeighborsClassifier(3).fit(known.flatten(1), DIGITS.train_labels)
    for strength in (0.0, *arguments.strengths):
        x = sm.decode(model, encoded.z + strength * (means[1] - means[0]), **solver).x
        if strength:
            rows[f"edited by {strength:g}"] = x
        read = float((reader.predict(x.flatten(1)) == arguments.target).mean())
        print(f"edited by {strength:g}: {read:.0%} read as {arguments.target}")
    picture(arguments.out, rows)
    print(f"the picture is {arguments.out}")


if __name__ == "__main__":
    main()
