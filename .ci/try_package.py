"""Try a wheel as a new user does: in an empty environment and from an empty folder.

It must bring what it imports, run the example of the README, and run the demonstration.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"

IMPORT_ALL = """
import importlib, pkgutil, sde_models
for module in pkgutil.walk_packages(sde_models.__path__, "sde_models."):
    importlib.import_module(module.name)
print(sde_models.__file__)
"""


def main(wheel: str) -> None:
    """Install a wheel and its dependencies, and use it; the first failure ends the run."""
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    with tempfile.TemporaryDirectory() as place:
        environment, folder = Path(place, "environment"), Path(place, "folder")
        venv.create(environment, with_pip=True)
        folder.mkdir()
        variables = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}

        def run(program: str, *words: str) -> None:
            command = [environment / "bin" / program, *words]
            subprocess.run(command, cwd=folder, env=variables, check=True)

        run("python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet", wheel)
        run("python", "-m", "pip", "check")
        run("python", "-c", IMPORT_ALL)
        run("python", "-c", example)
        run("sde-models", "demo", "--quick", "--no-progress", "--out", "demo")
        print(f"{wheel} works; the demonstration left", *sorted(os.listdir(folder / "demo")))


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
