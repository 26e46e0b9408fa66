"""Convert docstrings with Sphinx roles to Markdown with formulas for KaTeX."""

from __future__ import annotations

import inspect
import re
import textwrap
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|obj):`(~?)([^`]+)`")
FORMULA = re.compile(r":math:`((?:[^`\\]|\\.)+)`", re.DOTALL)
REFERENCE = re.compile(r"^(References?):\n((?: +.*\n?)+)", re.MULTILINE)
BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*|[ \t]*))*)", re.MULTILINE)


def as_markdown(text: str, where: griffe.Object | None = None) -> str:
    r"""Replace roles and directives.

    Args:
        text: A docstring.
        where: The object it belongs to, for names that are not fully qualified.

    Example:
        >>> print(as_markdown("At :math:`\\sigma_t`, see :func:`~sde_models.fit`."))
        At \(\sigma_t\), see [`fit`][sde_models.fit].
    """
    text = BLOCK.sub(_display, text)
    text = FORMULA.sub(lambda found: rf"\({found[1]}\)", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = REFERENCE.sub(lambda found: f"**{found[1]}:** {' '.join(found[2].split())}\n", text)
    return ROLE.sub(lambda found: _link(found[1], found[2], where), text)


def _display(found: re.Match[str]) -> str:
    indent, body = found[1], textwrap.dedent(found[2]).strip()
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    formula = f"\n{indent}".join(lines)
    return f"{indent}\\[\n{indent}{formula}\n{indent}\\]\n\n"


def _link(short: str, target: str, where: griffe.Object | None) -> str:
    shown = target.rsplit(".", 1)[-1] if short else target
    return f"[`{shown}`][{_in_full(target, where)}]"


def _in_full(target: str, where: griffe.Object | None) -> str:
    """The full name in the reference of an object named in a docstring."""
    first, *rest = target.split(".")
    inside: Any = None if first == "sde_models" else where
    while inside is not None:
        if first in inside.members:
            member = inside.members[first]
            target = ".".join((member.target_path if member.is_alias else member.path, *rest))
            break
        inside = inside.parent
    return where_defined(target)


def where_defined(path: str) -> str:
    """The path at which an object is defined, given any path from which it can be imported.

    Example:
        >>> where_defined("sde_models.fit")
        'sde_models.training.fitting.fit'
    """
    module, *names = path.split(".")
    found: Any = import_module(module)
    for name in names:
        if inspect.ismodule(found) and not hasattr(found, name):
            inner = f"{found.__name__}.{name}"
            found = import_module(inner) if find_spec(inner) else None
        else:
            found = getattr(found, name, None)
    if found is None:
        return path
    found = getattr(found, "fget", found)
    if inspect.ismodule(found) or not hasattr(found, "__qualname__"):
        return path
    return f"{found.__module__}.{found.__qualname__}"


class SphinxRoles(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring of the package."""

    def on_package(self, *, pkg: griffe.Module, **arguments: Any) -> None:
        """Called when the package has been read."""
        self._visit(pkg)

    def _visit(self, item: griffe.Object) -> None:
        if item.docstring is not None:
            item.docstring.value = as_markdown(item.docstring.value, item)
        for member in item.members.values():
            if not member.is_alias:
                self._visit(member)
