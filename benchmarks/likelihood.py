"""Cost and time of a log-density against its error, compared with usual recipes and libraries.

On mixtures in 2, 64 and 1,024 dimensions, the demonstration's networks of digits and a U-Net:
root-mean-square error against cost, which counts 1 for a forward pass of a sample and 2 for a
vector-Jacobian product, and against seconds. The usual recipe puts the log-determinant into the
state: SciPy's RK45 at rtol = atol = 1e-5 with a fixed Rademacher probe, as in score_sde_pytorch and
its descendants. Others are torchdiffeq's dopri5 likewise and with the exact trace, and the
likelihoods of flow_matching, zuko and k-diffusion; those not installed are left out, and the notes
say so. Results go to ``benchmarks/results/likelihood.{json,md,png}``.

    python benchmarks/likelihood.py
    python benchmarks/likelihood.py --models mixture-2d digits --out runs/likelihood
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from common.likelihood_models import CASES, Case, disagreements
from common.likelihood_peers import ONE_PROBE, Peer, ZukoPeer, absent, exact_peers
from common.likelihood_report import Row, as_json, as_markdown, plot
from common.results import common_options, read_options, save
from torch import Tensor
from tqdm.auto import tqdm

import sde_models as sm

TIGHT = 1e-9
"""Tolerance at which the other libraries are checked against the reference."""
TIMED = 3
"""Runs whose median time is taken, at least, unless they are slow."""
SLOW = 1.0
"""Seconds after which a run is not repeated for its time alone."""
Run = Callable[[int], tuple[Tensor, Tensor | None, float]]
"""From a seed to log-densities, the error reported, and the cost."""


def ours(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of everything that this library is tried with."""
    for tolerance, nodes in ((0.1, 12), (3e-2, 16), (3e-2, 24)):
        arguments = {"divergence": sm.Hutchinson(1), **_path(tolerance, nodes)}
        name = f"quadrature, {tolerance:g}, {nodes}, 1 probe"
        yield name, arguments
        # As the recipes, which report no error.
        yield f"{name}, no error reported", {**arguments, "estimate_solver_error": False}
    if case.small:
        for tolerance, nodes in ((3e-2, 24), (1e-2, 32), (1e-3, 40), (3e-4, 48), (1e-4, 64)):
            yield f"quadrature, {tolerance:g}, {nodes}, exact", {
                "divergence": "exact", **_path(tolerance, nodes)
            }  # fmt: skip
    for tol in case.tols:
        yield f"tol = {tol:g} nats", {"tol": tol}


def _path(tolerance: float, nodes: int) -> dict[str, Any]:
    """A tolerance in units of the noise, and intervals of the quadrature."""
    return {"rtol": 0.5 * tolerance, "atol": 0.5 * tolerance, "intervals": nodes}


def our_run(case: Case, arguments: dict[str, Any]) -> Run:
    """This library."""

    def run(seed: int) -> tuple[Tensor, Tensor | None, float]:
        generator = torch.Generator().manual_seed(seed)
        lp = sm.log_prob(case.model, case.x, generator=generator, **arguments)
        return lp.value.detach(), lp.error.detach(), lp.nfe + 2 * lp.vjps

    return run


def peer_run(case: Case, peer: Peer) -> Run:
    """Another library or a recipe."""

    def run(seed: int) -> tuple[Tensor, Tensor | None, float]:
        with sm.count_evaluations() as counter:
            value = peer.log_prob(case.model, case.x, seed)
        nfe = counter.cost(len(case.x)).nfe
        return value, None, nfe * (1 + 2 * peer.products(case.x))

    return run


def measure(run: Run, truth: Tensor, repeats: int) -> dict[str, Any]:
    """Error, cost and time of one method."""
    squares, costs, seconds, covered = [], [], [], []
    for seed in range(max(repeats, TIMED)):
        start = time.perf_counter()
        value, reported, cost = run(seed)
        seconds.append(time.perf_counter() - start)
        error = value - truth
        squares.append(float(error.square().mean()))
        costs.append(cost)
        if reported is not None and not reported.isnan().all():
            covered.append(float((error.abs() <= reported).double().mean()))
        if seed + 1 >= repeats and seconds[-1] > SLOW:
            break
    return {
        "error": statistics.fmean(squares) ** 0.5,
        "cost": statistics.fmean(costs),
        "seconds": statistics.median(seconds),
        "covered": statistics.fmean(covered) if covered else None,
    }


def measured(case: Case) -> Iterator[Row]:
    """Everything on one model."""
    peers = [peer for peer in ONE_PROBE + exact_peers(case.exact) if not absent(peer)]
    peers = [peer for peer in peers if case.small or not peer.exact or peer.chunked]
    settings = list(ours(case))
    truth = case.reference.value
    shape = tuple(case.x.shape[1:])
    with tqdm(total=len(peers) + len(settings), desc=case.name) as bar:
        for peer in peers:
            there = case.reference.under(case.model, peer.prior(case.model, shape))
            repeats = 1 if peer.exact else case.repeats
            found = measure(peer_run(case, peer), there, repeats)
            yield Row(case.name, peer.name, ours=False, exact=peer.exact, **found)
            bar.update()
        for name, arguments in settings:
            exact, tol = arguments.get("divergence") == "exact", arguments.get("tol")
            repeats = 1 if exact else case.repeats if tol is None else case.repeats // 2
            found = measure(our_run(case, arguments), truth, repeats)
            yield Row(case.name, name, ours=True, exact=exact, tol=tol, **found)
            bar.update()


def checked() -> Iterator[str]:
    """What each library's result differs from the reference by, and which are not installed."""
    peers = [
        replace(peer, rtol=TIGHT, atol=TIGHT, exact=isinstance(peer, ZukoPeer))
        for peer in ONE_PROBE
        if not absent(peer)
    ]
    for library, difference in disagreements(peers):
        yield (
            f"{library} agrees with the reference to {difference:.0e} nats at a tolerance of "
            f"{TIGHT:g}, on a mixture where its trace is exact"
        )
    yield from (f"Not measured: {reason}" for reason in filter(None, map(absent, ONE_PROBE)))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument(
        "--models", nargs="+", choices=list(CASES), default=list(CASES), help="those to run"
    )
    options = read_options(parser)
    notes, rows = list(checked()), list[Row]()
    for name in options.models:
        case = CASES[name]()
        notes.append(f"Reference, {case.name}, {len(case.x)} points: {case.reference.how}")
        rows += measured(case)
    save(options.out, "likelihood", as_json(rows, notes), as_markdown(rows, notes), plot(rows))


if __name__ == "__main__":
    main()
