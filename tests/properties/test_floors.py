"""Imports point down: a module of sde_models may import from its room and from floors below.

A *room* is a top-level module or package of ``sde_models``; each stands on a floor. The roof,
``sde_models/__init__.py``, gives the public names that ``_public`` gathers and may import
everything, so nothing below may import it. Two modules may not import each other, not even in a
roundabout way, and neither may two families of solvers.

The source is parsed, never run. An import counts wherever it stands, inside a function too. One
under ``if TYPE_CHECKING:`` must point down like the rest, but cannot close a cycle, since it never
runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sde_models"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("_utils", "_version"),
    ("sdes", "data", "divergence", "nn"),
    ("models", "solvers"),
    ("likelihood", "losses"),
    ("sampling",),
    ("shards",),
    ("training",),
    ("demo", "_public"),
    ("cli",),
)
"""The rooms, from the ground floor up."""
FLOOR_OF_ROOM = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """Module ``importer`` imports module ``target`` on line ``line`` of ``path``."""

    importer: str
    target: str
    path: Path
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.importer} imports {self.target}"


def find_modules(root: Path) -> dict[str, Path]:
    """Map the dotted name of every module of the package under ``root`` to its file."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        modules[".".join(parts)] = path
    return modules


def room_of(module: str) -> str:
    """``sde_models.solvers.registry`` is in the room ``solvers``; the roof is in no room."""
    return module.split(".")[1]


def walk(node: ast.AST, typing_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield ``node`` and all below it, each with whether it stands under ``if TYPE_CHECKING:``."""
    yield node, typing_only
    if isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    ):
        for statement in node.body:
            yield from walk(statement, typing_only=True)
        for statement in node.orelse:
            yield from walk(statement, typing_only)
    else:
        for child in ast.iter_child_nodes(node):
            yield from walk(child, typing_only)


def find_imports(modules: Mapping[str, Path]) -> list[Import]:
    """All imports of one module of the package by another."""
    found = []
    for importer, path in modules.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for node, typing_only in walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:  # relative: one dot is this package, each further dot one up
                    parent = package.rsplit(".", node.level - 1)[0]
                    base = f"{parent}.{base}" if base else parent
                # `from package import name` may name a module or something inside the package.
                names = [
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base
                    for alias in node.names
                ]
            else:
                continue
            for target in dict.fromkeys(names):
                if target.split(".")[0] == PACKAGE and target != importer:
                    found.append(Import(importer, target, path, node.lineno, typing_only))
    return found


def modules_in_no_room(modules: Mapping[str, Path]) -> list[str]:
    return [
        f"{path}: {module} is in no room; add '{room_of(module)}' to FLOORS in {__file__}"
        for module, path in modules.items()
        if module != PACKAGE and room_of(module) not in FLOOR_OF_ROOM
    ]


def imports_pointing_up(imports: list[Import]) -> list[str]:
    """The imports that break the rule, each with its file, its line and both floors."""
    complaints = []
    for imp in imports:
        if imp.importer == PACKAGE:
            continue
        if imp.target == PACKAGE:
            complaints.append(f"{imp}, the roof; import from the module that defines the name")
            continue
        if room_of(imp.importer) == room_of(imp.target):
            continue
        here = FLOOR_OF_ROOM.get(room_of(imp.importer))
        there = FLOOR_OF_ROOM.get(room_of(imp.target))
        if here is not None and there is not None and there >= here:
            complaints.append(f"{imp}, from floor {here} to floor {there}")
    return complaints


def find_cycle(imports: list[Import]) -> list[str]:
    """The modules along one import cycle, first and last the same; empty when there is none."""
    graph: dict[str, set[str]] = {}
    for imp in imports:
        if not imp.typing_only:
            graph.setdefault(imp.importer, set()).add(imp.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_every_module_is_in_a_room() -> None:
    complaints = modules_in_no_room(find_modules(ROOT))
    assert not complaints, "\n" + "\n".join(complaints)


def test_imports_point_down() -> None:
    imports = find_imports(find_modules(ROOT))
    assert imports, f"no imports found under {ROOT / PACKAGE}; is the checker looking there?"
    complaints = imports_pointing_up(imports)
    assert not complaints, "\n" + "\n".join(complaints)


def test_no_import_cycles() -> None:
    cycle = find_cycle(find_imports(find_modules(ROOT)))
    assert not cycle, "import cycle: " + " -> ".join(cycle)


def test_families_of_solvers_import_each_other_one_way() -> None:
    graph: dict[str, set[str]] = {}
    for imp in find_imports(find_modules(ROOT)):
        here, there = (name.split(".")[1:-1] for name in (imp.importer, imp.target))
        if here != there and [here[:1], there[:1]] == [["solvers"]] * 2 and len(here + there) == 4:
            graph.setdefault(here[1], set()).add(there[1])
    assert "one_step" in graph
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("whole_package_first", [True, False])
def test_every_module_can_be_imported_both_ways(whole_package_first: bool) -> None:
    """``import a.b.c`` and ``from a.b import c`` give the same module, whichever comes first."""
    names = sorted(set(find_modules(ROOT)) - {PACKAGE, f"{PACKAGE}.cli.__main__"})
    program = f"""
        import importlib, sys, types
        if {whole_package_first}:
            import sde_models
            sde_models.__all__
        for name in {names}:
            parent, _, last = name.rpartition(".")
            scope = {{}}
            exec(f"import {{name}} as plain\\nfrom {{parent}} import {{last}} as taken", scope)
            assert scope["plain"] is scope["taken"] is sys.modules[name], name
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# The checker itself, on small trees written for the purpose.


def write_tree(root: Path, files: Mapping[str, str]) -> dict[str, Path]:
    for name, source in {"__init__.py": "from sde_models.cli import app\n", **files}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return find_modules(root)


def test_checker_catches_an_import_on_the_same_floor(tmp_path: Path) -> None:
    modules = write_tree(
        tmp_path, {"models.py": "from sde_models.solvers import solve", "solvers.py": ""}
    )
    (complaint,) = imports_pointing_up(find_imports(modules))
    assert "from floor 2 to floor 2" in complaint


@pytest.mark.parametrize(
    "source",
    [
        "import sde_models.solvers",
        "import sde_models.solvers.registry as table",
        "from sde_models import solvers",
        "from sde_models.solvers import solve",
        "from sde_models.solvers.registry import TABLE",
        "from . import solvers",
        "from .solvers.registry import TABLE",
        "def late():\n    from sde_models.solvers import solve",
        "if TYPE_CHECKING:\n    from sde_models.solvers import solve",
        "try:\n    import torch\nexcept ImportError:\n    from sde_models.solvers import solve",
    ],
)
def test_checker_catches_an_import_that_points_up(tmp_path: Path, source: str) -> None:
    files = {"sdes.py": source, "solvers/__init__.py": "", "solvers/registry.py": ""}
    (complaint,) = imports_pointing_up(find_imports(write_tree(tmp_path, files)))
    assert "sdes.py" in complaint
    assert "from floor 1 to floor 2" in complaint


@pytest.mark.parametrize("source", ["from ..cli import app", "from .. import cli"])
def test_checker_catches_a_relative_import_out_of_a_package(tmp_path: Path, source: str) -> None:
    files = {"cli.py": "", "solvers/__init__.py": "", "solvers/registry.py": source}
    (complaint,) = imports_pointing_up(find_imports(write_tree(tmp_path, files)))
    assert "from floor 2 to floor 8" in complaint


@pytest.mark.parametrize(
    "source", ["import sde_models as sm", "from sde_models import VPSDE", "from . import VPSDE"]
)
def test_checker_catches_an_import_of_the_roof(tmp_path: Path, source: str) -> None:
    modules = write_tree(tmp_path, {"cli.py": source})
    (complaint,) = imports_pointing_up(find_imports(modules))
    assert "the roof" in complaint


def test_checker_lets_imports_point_down_or_stay_in_a_room(tmp_path: Path) -> None:
    files = {
        "cli.py": "import torch\nfrom sde_models import solvers\nfrom .sdes import VPSDE",
        "solvers/__init__.py": "from .registry import TABLE\nfrom sde_models import sdes",
        "solvers/registry.py": "from ..sdes import VPSDE",
        "sdes.py": "from sde_models._utils import Grid",
        "_utils.py": "",
    }
    modules = write_tree(tmp_path, files)
    imports = find_imports(modules)
    assert not modules_in_no_room(modules)
    assert not imports_pointing_up(imports)
    assert not find_cycle(imports)
    edges = {(imp.importer, imp.target) for imp in imports}
    assert edges == {
        ("sde_models", "sde_models.cli"),
        ("sde_models.cli", "sde_models.solvers"),
        ("sde_models.cli", "sde_models.sdes"),
        ("sde_models.solvers", "sde_models.solvers.registry"),
        ("sde_models.solvers", "sde_models.sdes"),
        ("sde_models.solvers.registry", "sde_models.sdes"),
        ("sde_models.sdes", "sde_models._utils"),
    }


def test_checker_catches_a_module_in_no_room(tmp_path: Path) -> None:
    modules = write_tree(tmp_path, {"cli.py": "", "attic.py": "", "loft/__init__.py": ""})
    complaints = modules_in_no_room(modules)
    assert len(complaints) == 2
    assert "add 'attic' to FLOORS" in complaints[0]
    assert "add 'loft' to FLOORS" in complaints[1]


def test_checker_catches_a_cycle_within_a_room(tmp_path: Path) -> None:
    files = {
        "cli.py": "",
        "sampling/samples.py": "from sde_models.sampling.latents import encode",
        "sampling/latents.py": "from sde_models.sampling.grids import adapt_grid",
        "sampling/grids.py": "def late():\n    import sde_models.sampling.samples",
    }
    imports = find_imports(write_tree(tmp_path, files))
    cycle = find_cycle(imports)
    assert set(cycle) == {f"sde_models.sampling.{name}" for name in ("samples", "latents", "grids")}
    assert cycle[0] == cycle[-1]
    assert set(pairwise(cycle)) <= {(imp.importer, imp.target) for imp in imports}


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_typing_only_closes_no_cycle(tmp_path: Path, test: str) -> None:
    files = {
        "cli.py": "",
        "models/base.py": "from sde_models.models.gaussian_mixture import GaussianMixture",
        "models/gaussian_mixture.py": f"if {test}:\n    from sde_models.models.base import Model",
    }
    assert not find_cycle(find_imports(write_tree(tmp_path, files)))
    files["models/gaussian_mixture.py"] += "\nelse:\n    from sde_models.models.base import Model"
    assert find_cycle(find_imports(write_tree(tmp_path, files)))
