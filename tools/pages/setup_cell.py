# Runs before the first cell of every tutorial, and is not shown.
import warnings

import matplotlib.pyplot as plt
import torch

warnings.filterwarnings("ignore", message="IProgress not found")
get_ipython().run_line_magic("matplotlib", "inline")  # noqa: F821
get_ipython().run_line_magic(  # noqa: F821
    "config", "InlineBackend.print_figure_kwargs = {'bbox_inches': 'tight', 'dpi': 144}"
)
GREY = "#7d7d7d"  # readable on a light page and on a dark one
COLOURED = [
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "axes.titlecolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
    "legend.labelcolor",
]
plt.rcParams.update(
    {
        "figure.figsize": (6.4, 3.6),
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.8,
        "font.size": 10,
        "image.cmap": "cool",
        **dict.fromkeys(COLOURED, GREY),
    }
)
torch.set_num_threads(1)
torch.set_printoptions(precision=4, sci_mode=False)

# A page has its own imports and seeds, so that its cells also run from a file.
del warnings, plt, torch, GREY, COLOURED
