"""The tests for a GPU and the benchmark on it, within eight minutes.

Runs ``tests/devices`` on the GPU, then ``benchmarks/gpu.py``, each with its own deadline, and
adds the result of the tests to ``benchmarks/results/gpu.json``. The exit status is 1 if there is no
GPU, a test fails, or one of the two is not finished.

    make check-gpu
    python benchmarks/check_gpu.py --device cpu --smoke
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common.results import RESULTS

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = (
    "error: torch finds no GPU with CUDA here (torch.cuda.is_available() is False): run this on a "
    "machine that has one, with a torch that was built for it"
)
ENDED = re.compile(r"^tests/.*\b(PASSED|FAILED|ERROR)\b|^\[gw\d+\].*\b(PASSED|FAILED|ERROR)\b")
"""How a test ended, as pytest prints it with one process and with several."""


def run(command: list[str], seconds: float, **environment: str) -> tuple[int, list[str]]:
    """Run a program until it ends or time is up, showing what it prints.

    Returns:
        Its exit status, or 124 where time ran out, and the lines that it printed.
    """
    print(f"\n$ {' '.join(command[1:])}   ({seconds:.0f} s at most)", flush=True)
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    status = process.wait()
    timer.cancel()
    return (124 if late.is_set() else status), lines


def run_tests(device: str, workers: int, seconds: float) -> dict[str, Any]:
    """Run the tests of devices, and count how they ended."""
    start = time.monotonic()
    # Plugins of other projects may warn, and warnings are errors here.
    plugins = ["-p", "xdist", "-n", str(workers)] if importlib.util.find_spec("xdist") else []
    status, lines = run(
        [sys.executable, "-m", "pytest", "tests/devices", "-v", "-k", device, *plugins,
         "-p", "no:cacheprovider", "--durations=15"],
        seconds,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONUNBUFFERED="1", TORCHINDUCTOR_COMPILE_THREADS="2",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    ended = [next(filter(None, found.groups())) for line in lines if (found := ENDED.search(line))]
    named = {line.partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))}
    return {
        "status": status,
        "passed": ended.count("PASSED"),
        "failed": len(ended) - ended.count("PASSED"),
        "failures": sorted(named),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> int:
    """Check from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes of the benchmark")
    parser.add_argument("--workers", type=int, default=6, help="pytest processes")
    parser.add_argument("--tests", type=float, default=240.0, help="seconds for the tests")
    parser.add_argument("--benchmark", type=float, default=200.0, help="seconds for the benchmark")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    tests = run_tests(options.device, options.workers, options.tests)
    benchmark = [sys.executable, "benchmarks/gpu.py", "--device", options.device]
    benchmark += ["--seconds", str(options.benchmark), "--out", str(options.out.resolve())]
    # Importing and writing take some seconds more than what is measured.
    measured, _ = run(
        benchmark + ["--smoke"] * options.smoke, options.benchmark + 25, PYTHONUNBUFFERED="1"
    )
    path = options.out / "gpu.json"
    content = json.loads(path.read_text()) if measured in (0, 124) and path.exists() else {}
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "tests": tests}, indent=1) + "\n")
    print(
        f"\ntests: {tests['passed']} passed, {tests['failed']} failed in {tests['seconds']:.0f} s; "
        f"benchmark: {'done' if measured == 0 else f'status {measured}'}; {path}"
    )
    return int(tests["status"] != 0 or measured != 0)


if __name__ == "__main__":
    sys.exit(main())
