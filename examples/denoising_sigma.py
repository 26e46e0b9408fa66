"""A single noise level: the best for the score of the data is not the best for sampling.

    python examples/denoising_sigma.py --steps 300

Denoising at a single sigma learns the score of the data blurred by sigma. Little noise blurs
little, but the network sees no data between the modes, and Langevin steps as short as the noise do
not move samples from one to the other. Much noise does, to a blurred law.
"""

import argparse
from functools import partial

import torch

import sde_models as sm

MIXTURE = sm.GaussianMixture([[-1.5], [1.5]], 0.3, weights=[0.8, 0.2])


def train(sigma: float, sde: sm.VESDE, arguments: argparse.Namespace) -> sm.ScoreModel:
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    network = sm.nn.ResidualNetwork((1,), width=32, depth=2)
    model = sm.ScoreModel(network, sde, preconditioning="edm")
    data = MIXTURE.sample(5000, generator=generator)
    loss = partial(sm.losses.denoising_score_matching, sigma=sigma, weighting="simple")
    return sm.fit(
        model, data, steps=arguments.steps, batch_size=256, loss=loss, generator=generator,
        progress=False, learning_rate=5e-3, warmup=20, ema_decay=0.98,
    ).model  # fmt: skip


@torch.no_grad()
def langevin(model: sm.ScoreModel, t: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, 1, generator=generator)
    for _ in range(200):
        noise = torch.randn(x.shape, generator=generator)
        x = x + 0.5 * sigma**2 * model.score(t, x) + sigma * noise
    return x


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4, 0.8])
    parser.add_argument("--steps", type=int, default=300, help="steps of training at each level")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sde = sm.VESDE(0.01, 10.0, data_std=1.3)
    data = MIXTURE.sample(20_000, generator=torch.Generator().manual_seed(1))
    score = torch.func.grad(lambda x: MIXTURE.log_prob(x).sum())(data)
    rows = []
    print(f"{'sigma':>6}{'error of the score':>22}{'distance of samples':>22}")
    for sigma in arguments.sigmas:
        (t,) = sm.times_of_sigmas(sde, [sigma])
        with torch.enable_grad():
            model = train(sigma, sde, arguments)
        error = float((model.score(t, data) - score).square().mean() / score.square().mean())
        x = langevin(model, t, sigma, arguments.seed)
        distance = float((x.sort(0).values - data[:2000].sort(0).values).abs().mean())
        rows.append((error, distance, sigma))
        print(f"{sigma:6.2f}{error:22.3f}{distance:22.3f}")
    best = min(rows)[2], min(rows, key=lambda row: row[1])[2]
    print(f"best for the score of the data: sigma={best[0]:g}; for sampling: sigma={best[1]:g}")


if __name__ == "__main__":
    main()
