"""Images that a U-Net samples and scores in a second on a GPU, compared with the bare network.

The network is the DDPM++ of :class:`sde_models.nn.UNet` for 32x32 images, with 62 million random
weights. Solvers make as many network calls as the bare network does in a loop, and as the
``DDIMPipeline`` of diffusers does with the same weights. All of one batch size are timed in turn,
round after round, and the median of the ratios of the rounds is quoted. A likelihood is compared
with the same number of rows through the bare network, forwards and backwards. Parts for which
there is no time are left out, and results are written after each part.
Results: ``benchmarks/results/gpu.{json,md,png}``.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --smoke
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common.deadline import Deadline
from common.gpu_networks import Graphed, HalfInside
from common.gpu_report import BARE, Row, as_markdown, describe_machine, plot
from common.results import common_options, read_options, save
from torch import Tensor, nn

import sde_models as sm
from sde_models.likelihood import traces

Works = dict[str, Callable[[], object]]

T_MIN = 1e-3
SOLVERS = ("ddim", "dpmpp-2m", "unipc-3", "heun-edm", "euler-maruyama", "ode:euler", "sde:euler")


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        side: Height and width of an image.
        network: Arguments of the U-Net.
        batches: Batch sizes of sampling, the first of which saturates a GPU.
        calls: Network calls of a solve.
        likelihoods: Batch size of likelihoods.
        at_once: Numbers that go through the derivative at once.
        nodes: Intervals between the nodes of a likelihood's quadrature.
        training: Steps of a timed training, and their batch size.
    """

    side: int = 32
    network: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (128, 16)
    calls: int = 24
    likelihoods: int = 64
    at_once: tuple[int, ...] = (2**16, 2**18, 2**20)
    nodes: int = 32
    training: tuple[int, int] = (20, 128)


SMOKE = Sizes(
    8, {"channels": 4, "multipliers": (1, 2), "blocks": 1}, (2, 1), 4, 2, (2**18,), 12, (2, 4)
)
"""For a machine without a GPU, to check that everything runs."""


class Benchmark:
    """All measurements of one network on one device.

    Args:
        device: Where.
        sizes: How large everything is.
        rounds: Timed rounds of each part, fewer where time is short.
        deadline: When to stop.
    """

    def __init__(self, device: str, sizes: Sizes, rounds: int, deadline: Deadline) -> None:
        self.device, self.sizes, self.rounds, self.deadline = device, sizes, rounds, deadline
        torch.manual_seed(0)
        self.shape = (3, sizes.side, sizes.side)
        self.network = sm.nn.UNet(self.shape, **sizes.network).eval()
        nn.init.normal_(self.network.unet.conv_out.weight, std=1e-2)  # it starts at zero
        self.network.to(device)
        self.rows: list[Row] = []
        self.left_out: dict[str, str] = {}
        self.failed = False

    def run(self, after_each: Callable[[], None]) -> None:
        """Measure part after part."""
        parts: dict[str, Callable[[], None]] = {
            **{f"sampling, batch {n}": lambda n=n: self.sampling(n) for n in self.sizes.batches},
            "likelihood": self.likelihood,
            **({"CUDA graphs": self.graphs} if self.device == "cuda" else {}),
            "bfloat16": self.half,
            "training": self.training,
            "torch.compile": self.compiled,
        }
        for name, part in parts.items():
            if self.deadline.left < 5:
                self.left_out[name] = "no time was left for it"
                continue
            print(f"{name}, {self.deadline.left:.0f} s left", flush=True)
            try:
                with self.deadline.enforced():
                    part()
            except Exception as error:  # the other parts are worth having
                late = self.deadline.left < 1  # a compiler wraps the interruption in its own error
                why = "no time was left for it" if late else f"{type(error).__name__}: {error}"
                self.left_out[name] = why.splitlines()[0]
                if not late:
                    self.failed = True
                    traceback.print_exc()
            after_each()
        after_each()

    def x(self, batch: int) -> Tensor:
        """Noise to start from."""
        return torch.randn(batch, *self.shape, device=self.device)

    def model(self, network: nn.Module | None = None) -> sm.ScoreModel:
        """A network as a model."""
        return sm.ScoreModel(self.network if network is None else network, sm.VPSDE(t_min=T_MIN))

    def bare(self, network: nn.Module, x: Tensor, calls: int) -> None:
        """Call only the network."""
        t = torch.full((len(x),), 0.5, device=self.device)
        with torch.no_grad():
            for _ in range(calls):
                network(t, x)

    def solve(self, model: sm.ScoreModel, x: Tensor, name: str) -> sm.Solution:
        """A solve with about the given number of network calls."""
        solver = sm.list_solvers()[name]
        flow = solver.deterministic
        system = sm.ProbabilityFlow(model) if flow else sm.ReverseSDE(model, self.shape)
        steps = max(self.sizes.calls // (solver.evaluations or 1), 1)
        return sm.solve(system, x, (1.0, T_MIN), name, steps=steps)

    def sampling(self, batch: int) -> None:
        """Solvers and diffusers' pipeline, compared with the bare network."""
        x, model = self.x(batch), self.model()
        works: Works = {BARE: lambda: self.bare(self.network, x, self.sizes.calls)}
        works |= {f"`{s}`": lambda s=s: self.solve(model, x, s) for s in SOLVERS}
        works["diffusers' `DDIMPipeline`"] = self.pipeline(batch)
        calls = {f"`{s}`": self.solve(model, x[:1], s).cost.calls for s in SOLVERS}
        self.measure("sampling", batch, works, calls)

    def pipeline(self, batch: int) -> Callable[[], object]:
        """The same weights, driven by diffusers."""
        from diffusers import DDIMPipeline, DDIMScheduler

        pipe = DDIMPipeline(self.network.unet, DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        calls = self.sizes.calls
        return lambda: pipe(batch, num_inference_steps=calls, output_type="np", return_dict=False)

    def graphs(self) -> None:
        """The network as a CUDA graph, at each batch size."""
        for batch in reversed(self.sizes.batches):
            self.faster("CUDA graph", Graphed(self.network, self.x(batch)), batch)

    def half(self) -> None:
        """The network in bfloat16, with and without a CUDA graph."""
        half = HalfInside(self.network)
        for batch in self.sizes.batches:
            self.faster("bfloat16", half, batch)
        if self.device == "cuda":
            batch = self.sizes.batches[-1]
            self.faster("bfloat16, CUDA graph", Graphed(half, self.x(batch)), batch)

    def compiled(self) -> None:
        """The network compiled, on a GPU by inductor, at the larger batch size."""
        backend = "inductor" if self.device == "cuda" else "eager"
        network = torch.compile(self.network, dynamic=False, backend=backend)
        self.faster("torch.compile", network, self.sizes.batches[0])

    def faster(self, how: str, network: nn.Module, batch: int) -> None:
        """A solver with the network as it is and made faster."""
        x, model = self.x(batch), self.model(network)
        works: Works = {
            BARE: lambda: self.bare(self.network, x, self.sizes.calls),
            f"{BARE}, {how}": lambda: self.bare(network, x, self.sizes.calls),
            f"`dpmpp-2m`, {how}": lambda: self.solve(model, x, "dpmpp-2m"),
        }
        self.measure("faster", batch, works, {})

    def likelihood(self) -> None:
        """Log-densities, compared with the same rows through the bare network."""
        batch, model = self.sizes.likelihoods, self.model()
        x = 0.5 * self.x(batch).clamp(-1, 1)

        def score() -> sm.LogProb:
            return sm.log_prob(
                model, x, divergence="hutchinson", rtol=1e-2, atol=1e-2, intervals=self.sizes.nodes,
                generator=torch.Generator(self.device).manual_seed(0),
            )  # fmt: skip

        found = score()
        forward, backward = int(found.nfe - found.vjps), int(found.vjps)

        def bare() -> None:
            self.bare(self.network, x, forward)
            t = torch.full((batch,), 0.5, device=self.device)
            for _ in range(backward):
                point = x.clone().requires_grad_()
                torch.autograd.grad(self.network(t, point), point, x)

        works: Works = {f"{BARE}, {forward} calls and {backward} with a product": bare}
        for count in self.sizes.at_once:
            images = max(1, count // x[0].numel())
            works[f"`log_prob`, up to {images} images at once"] = lambda n=count: taking(n, score)
        self.measure("likelihood", batch, works, {"": found.cost.calls}, rounds=2)

    def training(self) -> None:
        """Steps of fit, in each precision."""
        steps, batch = self.sizes.training
        data = self.x(4 * batch).cpu()

        def train(precision: str | None) -> None:
            sm.fit(
                self.model(), data, steps=steps, batch_size=batch, mixed_precision=precision,
                seed=0, progress=False,
            )  # fmt: skip

        works: Works = {f"`fit`, {p or 'float32'}": lambda p=p: train(p) for p in (None, "bf16")}
        weights = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.measure("training", steps * batch, works, {"": steps}, rounds=1)
        self.network.load_state_dict(weights)
        self.network.eval()

    def measure(
        self, part: str, count: int, works: Works, calls: dict[str, int], rounds: int | None = None
    ) -> None:
        """Time works in turn; the first is what the others are compared with, call by call."""
        times: dict[str, list[float]] = {}
        peaks: dict[str, float] = {}
        for name, work in works.items():  # the warm-up
            try:
                peaks[name] = self.seconds(work)[1]
                times[name] = []
            except torch.OutOfMemoryError:
                self.left_out[f"{part}, {name}, batch {count}"] = "memory ran out"
        if self.device == "cuda":
            torch.cuda.empty_cache()
        for i in range(rounds or self.rounds):
            for name in reversed(times) if i % 2 else times:
                times[name].append(self.seconds(works[name])[0])
            if self.deadline.left < 1.5 * sum(spent[-1] for spent in times.values()):
                break
        made = {name: calls.get(name, calls.get("", self.sizes.calls)) for name in times}
        first = next(iter(times))
        for name, spent in times.items():
            share = made[first] / made[name]
            ratios = [share * a / b for a, b in zip(spent, times[first], strict=True)]
            self.rows.append({
                "part": part, "what": name, "batch": count, "calls": made[name],
                "seconds": statistics.median(spent),
                "images_per_second": count / statistics.median(spent),
                "milliseconds_per_call": 1000 * statistics.median(spent) / made[name],
                "over_first": statistics.median(ratios), "rounds": len(spent),
                "peak_gib": peaks[name],
            })  # fmt: skip

    def seconds(self, work: Callable[[], object]) -> tuple[float, float]:
        """Wall time of one run, and the most memory of the GPU that it took, in GiB."""
        cuda = self.device == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
        return spent, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def taking(numbers: int, work: Callable[[], object]) -> object:
    """Run with so many numbers through the derivative at once."""
    usual = traces.MOST_NUMBERS
    traces.MOST_NUMBERS = numbers
    try:
        return work()
    finally:
        traces.MOST_NUMBERS = usual


def main() -> None:
    """Run the benchmark from the command line."""
    parser = common_options(__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each part")
    parser.add_argument("--seconds", type=float, default=200.0, help="time for all parts")
    options = read_options(parser)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "error: torch finds no GPU with CUDA here\n")
    sys.exit(run(options))


def run(options: argparse.Namespace) -> int:
    """Measure, and write after each part what there is; 1 if a part failed."""
    deadline = Deadline(options.seconds)
    sizes = SMOKE if options.smoke else Sizes()
    benchmark = Benchmark(options.device, sizes, options.rounds, deadline)
    machine = describe_machine(options.device)

    def write() -> None:
        rows, left_out = benchmark.rows, benchmark.left_out
        content = {"machine": machine, "rows": rows, "left_out": left_out}
        table, figure = as_markdown(rows, left_out, machine), plot(rows)
        save(Path(options.out), "gpu", content, table, figure)

    benchmark.run(write)
    return int(benchmark.failed)


if __name__ == "__main__":
    main()
