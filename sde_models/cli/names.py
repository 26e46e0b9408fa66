"""Names of the library's tables for the help, which does not load the library.

``tests/cli/test_cli.py`` checks that they equal the tables.
"""

DATA = (
    "digits", "patches", "two-moons", "swiss-roll", "checkerboard", "pinwheel", "eight-gaussians",
    "twenty-five-gaussians", "rings", "spiral", "mnist", "fashion-mnist", "cifar10",
)  # fmt: skip
SDES = ("vp", "subvp", "ve", "cosine", "flow-matching")
NETWORKS = ("residual", "mixing", "ddpm++", "ncsn++")
PREDICTIONS = ("eps", "x0", "v", "score")
OBJECTIVES = ("denoising", "sliced", "finite-difference", "implicit")
WEIGHTINGS = ("output", "edm", "simple", "min-snr", "likelihood")
TIME_SAMPLERS = ("uniform", "log-snr", "importance", "log-normal")
