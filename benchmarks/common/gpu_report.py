"""The table and the plot of ``gpu.py``, and what its numbers depend on."""

from __future__ import annotations

from typing import Any

import torch
from common.results import empty_figure
from matplotlib.figure import Figure

Row = dict[str, Any]

BARE = "bare network"


def as_markdown(rows: list[Row], left_out: dict[str, str], machine: dict[str, Any]) -> str:
    """The table that is printed and saved."""
    columns = ["", "batch", "network calls", "seconds", "images/s", "ms / call"]
    columns += ["over first", "GiB"]
    lines = [f"On one {machine['device']} with torch {machine['torch']}.", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        cells = [
            f"{row['part']}: {row['what']}", str(row["batch"]), str(row["calls"]),
            f"{row['seconds']:.3g}", f"{row['images_per_second']:.4g}",
            f"{row['milliseconds_per_call']:.2f}", f"{row['over_first']:.3f}",
            f"{row['peak_gib']:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Medians over the rounds. The last columns: the time of a network call compared with that "
        "of the first row of the same part and batch, and the most memory of the GPU.",
    ]
    lines += [f"Left out: {name} ({why})." for name, why in left_out.items()]
    return "\n".join(lines)


def plot(rows: list[Row]) -> Figure:
    """Bars of what a solver takes, compared with the bare network."""
    shown = [row for row in rows if row["part"] == "sampling" and row["what"] != BARE]
    figure = empty_figure(8, 0.28 * len(shown) + 1.2)
    axes = figure.subplots()
    labels = [f"{row['what']}, batch {row['batch']}".replace("`", "") for row in shown]
    axes.barh(range(len(shown)), [row["over_first"] - 1 for row in shown], left=1)
    axes.set_yticks(range(len(shown)), labels)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="time of a solve / time of its network calls alone")
    return figure


def describe_machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "convolutions_in_tf32": torch.backends.cudnn.allow_tf32,
        "matrix_products_in_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
