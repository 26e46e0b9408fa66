"""Two processes that talk over gloo, started as ``accelerate launch`` would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240
"""Seconds after which they count as hung."""


def run_two(*words: str) -> list[tuple[str, str]]:
    """Run Python with these words in two processes, and wait for both.

    Returns:
        What each wrote to its output and error streams.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *words], env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            with process:
                process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(sum(said, ()))
    return said
