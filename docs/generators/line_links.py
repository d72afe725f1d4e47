"""Links from prose to the line where something is defined: "[`Saver.begin`](../../workers/kv_saves.py#L71)".

The names are written by hand, the line numbers here. A name that is not defined where the link says is an error, so a walk
through the code cannot outlive the code it walks through.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<up>(?:\.\./)+)(?P<path>[\w/]+\.py)(?:#L\d+)?\)")


def with_line_numbers(page: str) -> str:
    """`page` with every such link pointing at the definition's line.

    Raises:
        LookupError: a file or a name is not there.
    """
    return _LINK.sub(_numbered, page)


def _numbered(link: re.Match[str]) -> str:
    line = line_of(ROOT / link["path"], link["name"])
    return f"[`{link['name']}`]({link['up']}{link['path']}#L{line})"


def line_of(path: Path, name: str) -> int:
    """Line of `Class.method`, `Class`, `function` or a module's `NAME`.

    Raises:
        LookupError: not there.
    """
    if not path.exists():
        raise LookupError(f"{path.relative_to(ROOT)} does not exist")
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    line = 0
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            raise LookupError(f"{path.relative_to(ROOT)} defines no {name}")
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()
