"""A page of all messages that the library raises, read from its sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

SHORTEST = 12
"""Fewer letters than this in the constant part of a message are not informative."""


def message_page(package: Path) -> tuple[str, str]:
    """Path on the site and Markdown of the page.

    Args:
        package: Folder of the sources.
    """
    lines = ["# All messages", ""]
    lines += [
        "Every error that the library raises itself, under the module that raises it. Variable "
        "parts are left out (…). Cause and cure are in the message; the most common errors are "
        "explained in [troubleshooting](../tutorials/troubleshooting.md).",
        "",
    ]
    for path in sorted(package.rglob("*.py")):
        found = list(messages(path.read_text(encoding="utf-8")))
        if found:
            module = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
            lines += [f"## {module}", ""]
            lines += [f"- `{kind}`: {escape(text, quote=False)}" for kind, text in found] + [""]
    return "reference/messages.md", "\n".join(lines)


def messages(source: str) -> Iterator[tuple[str, str]]:
    """Name and message of each exception that a module raises."""
    raised = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    for node in sorted(raised, key=lambda node: node.lineno):
        if isinstance(node.exc, ast.Call) and node.exc.args:
            text = " ".join(_as_text(node.exc.args[0]).split())
            if sum(map(str.isalpha, text)) >= SHORTEST:
                yield ast.unparse(node.exc.func).rsplit(".", 1)[-1], _quoted(text)


def _as_text(node: ast.expr) -> str:
    """A string expression, with dots for parts known only at run time."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_as_text, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _as_text(left) + _as_text(right)
        case _:
            return "…"


def _quoted(text: str) -> str:
    """Escape Markdown in a message."""
    for sign in "\\*_[]`$#":
        text = text.replace(sign, "\\" + sign)
    return text
