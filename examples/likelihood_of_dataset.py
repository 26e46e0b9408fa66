"""Bits per dimension of a data set: held-out digits under a model, and under a Gaussian.

    python examples/likelihood_of_dataset.py --tol 0.5 --out runs/likelihood

Stop it, and start it again with the same options: training resumes from its last checkpoint, the
evaluation from its last chunk. With ``--model`` a file of ``sm.save_model`` is evaluated instead.
"""

import argparse
import csv
import json
import math
from pathlib import Path

import torch

import sde_models as sm

DIGITS = sm.data.digits()


def train(arguments: argparse.Namespace) -> sm.ScoreModel:
    torch.manual_seed(arguments.seed)
    network = sm.nn.MixingNetwork((1, 8, 8), width=arguments.width, depth=2)
    sde = sm.VPSDE(t_min=1e-4, data_std=0.5)
    model = sm.ScoreModel(network, sde, preconditioning="edm", event_shape=(1, 8, 8))
    data = sm.data.find_data("digits").batches()  # with new noise in the grey levels each time
    return sm.fit(
        model, data, steps=arguments.steps, batch_size=128, learning_rate=3e-3, weight_decay=0.01,
        seed=arguments.seed, out=arguments.out / "training", checkpoint_every=200,
    ).model  # fmt: skip


def gaussian_bits(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Bits per dimension of each image under one Gaussian, fitted to the training images."""
    x = sm.data.dequantize(DIGITS.train.repeat(20, 1, 1, 1), DIGITS.levels, generator=generator)
    x = x.flatten(1).double()
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    y = sm.data.dequantize(images, DIGITS.levels, generator=generator).flatten(1).double()
    # A level is 2 / levels wide, so its probability is that times the density.
    log_probability = gaussian.log_prob(y) + y.shape[1] * math.log(2 / DIGITS.levels)
    return -log_probability / (y.shape[1] * math.log(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="file of sm.save_model; default: train one")
    parser.add_argument("--steps", type=int, default=800, help="steps of training")
    parser.add_argument("--width", type=int, default=24, help="width of the network")
    parser.add_argument("--images", type=int, default=360, help="test images, at most 360")
    parser.add_argument("--tol", type=float, default=3.0, help="tolerance in nats per image")
    parser.add_argument("--chunk", type=int, default=40, help="images per file of results")
    parser.add_argument("--out", type=Path, default=Path("runs/likelihood"), help="folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    test = DIGITS.test[: arguments.images]

    model = sm.load_model(arguments.model) if arguments.model else train(arguments)
    found = sm.evaluate(
        model, test, arguments.out / "evaluation",
        levels=DIGITS.levels, tol=arguments.tol, chunk=arguments.chunk, seed=arguments.seed,
    )  # fmt: skip

    count = len(test)
    print(f"{found.resumed} of {count} images were found done, by an earlier run")
    print(f"bits per dimension {float(found.mean):.4f} ± {float(found.mean_stderr):.4f}")
    print(f"cost {found.cost} per image")
    baseline = gaussian_bits(test, torch.Generator().manual_seed(arguments.seed))
    gain = baseline - found.value
    print(f"a Gaussian has     {float(baseline.mean()):.4f}, so that the model gains")
    print(f"  {float(gain.mean()):.4f} ± {float(gain.std()) / count**0.5:.4f} on the same images")

    labels = DIGITS.test_labels[:count]
    columns = (labels, found.value, found.stderr, found.solver_error, baseline)
    with (arguments.out / "bits.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "bits", "stderr", "solver_error", "gaussian_bits"])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        table.writerows([index, *row] for index, row in enumerate(rows))
    (arguments.out / "bits.json").write_text(json.dumps(found.summary(), indent=2) + "\n")
    print(f"the values of all images are in {arguments.out / 'bits.csv'}")


if __name__ == "__main__":
    main()
