"""The main functions of the library, on a model with closed-form answers.

    python examples/mixture.py --solver scipy:DOP853

Samples a ring of Gaussians by a stochastic and by an ordinary differential equation, encodes and
decodes the samples, and compares log-probabilities with the exact ones.
"""

import argparse
import math

import torch

import sde_models as sm


def ring(components: int, radius: float = 1.5) -> sm.GaussianMixture:
    """Gaussians evenly spaced on a circle."""
    angles = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    return sm.GaussianMixture(radius * torch.stack((angles.cos(), angles.sin()), dim=1), 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solver", default="ode:dopri5", help="an ODE solver of sm.list_solvers()")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)

    mixture = ring(8)
    model = mixture.score_model(sm.VPSDE())  # a trained sm.ScoreModel goes here too
    shape = (arguments.samples, 2)

    print("log-density of samples under the exact mixture, mean over samples:")
    drawn = mixture.sample(arguments.samples, generator=generator)
    print(f"  {'the mixture itself':<20}{float(mixture.log_prob(drawn).mean()):8.3f}")
    for solver, steps in (("euler-maruyama", 200), ("sde:heun", 100), (arguments.solver, None)):
        out = sm.sample(model, shape, solver=solver, steps=steps, generator=generator)
        quality = float(mixture.log_prob(out.x).mean())
        print(f"  {solver:<20}{quality:8.3f}   {out.cost}")

    encoded = sm.encode(model, drawn, solver=arguments.solver, rtol=1e-7, atol=1e-7)
    back = sm.decode(model, encoded.z, solver=arguments.solver, rtol=1e-7, atol=1e-7)
    print(f"latents have mean square {float(encoded.z.square().mean()):.3f} (the prior's is 1)")
    print(f"largest round-trip error {float((back.x - drawn).abs().max()):.1e}")

    lp = sm.log_prob(model, drawn, solver=arguments.solver, divergence="exact")
    error = (lp.value - mixture.log_prob(drawn)).abs()
    print(f"log-probabilities off by {float(error.mean()):.1e} nats on average,")
    print(f"  reported {float(lp.solver_error.mean()):.1e}, for {lp.cost}")


if __name__ == "__main__":
    main()
