"""The house rules a machine can check: sizes, imports, names that must not appear, docs that name tests which exist."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("erllama_host", "workers", "cache_daemon")
COMPANIONS = ("benchmarks", "examples", "docs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
READABLE = [*SOURCES, *(path for name in COMPANIONS for path in sorted((ROOT / name).rglob("*.py")))]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body: a signature that lists the options of a command is a table, not code."""
    return (node.end_lineno or node.lineno) - node.body[0].lineno + 1


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", READABLE, ids=_relative)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MAX_FILE_LINES, f"{_relative(path)} has {lines} lines"
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{node.name} ({_body_lines(node)} lines)" for node in functions if _body_lines(node) > MAX_FUNCTION_LINES]
    assert not long, f"{_relative(path)}: {long}"


@pytest.mark.parametrize("path", READABLE, ids=_relative)
def test_every_module_and_public_class_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{_relative(path)} has no module docstring"
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not missing, f"{_relative(path)}: no docstring on {missing}"


@pytest.mark.parametrize("path", READABLE, ids=_relative)
def test_nothing_dangerous_is_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
            assert not {"pickle", "marshal", "shelve"} & {name.partition(".")[0] for name in names}, _relative(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, _relative(path)
        if isinstance(node, ast.keyword) and node.arg == "shell":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, _relative(path)


def test_modules_that_call_themselves_pure_are_under_the_contract_and_no_others() -> None:
    """`lint-imports` then holds them to it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (held,) = (set(each["source_modules"]) for each in contracts if each["name"].startswith("pure core"))
    say_so = set()
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        heading = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        if re.search(r"\b[Pp]ure\b", heading):
            say_so.add(module)
    packages = {module for module in held if (ROOT / module.replace(".", "/")).is_dir()}
    uncovered = {module for module in say_so - held if not any(module.startswith(f"{each}.") for each in packages)}
    assert not uncovered, "add them to the contract, or do not call them pure"
    silent = held - say_so - packages - {"erllama_host.errors"}
    assert not silent, "these are pure by contract: say so"


def test_docs_name_only_tests_that_exist() -> None:
    """Pages name tests as `tests/…/test_x.py` or `tests/…/test_x.py::test_y`."""
    pattern = re.compile(r"`(tests/[\w/.-]+\.py)(?:::(\w+))?`")
    missing = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for file_name, test_name in pattern.findall(page.read_text(encoding="utf-8")):
            file = ROOT / file_name
            if not file.exists() or (
                test_name and not re.search(rf"(def|class) {test_name}\b", file.read_text(encoding="utf-8"))
            ):
                missing.append(f"{page.name}: {file_name}::{test_name}")
    assert not missing


def _tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [ROOT / name for name in listing.stdout.splitlines()]


def test_no_path_of_a_developers_machine_is_in_the_tree() -> None:
    needle = re.compile("/" + r"(root|home/\w+|work)/[\w.]+/")
    found = [
        _relative(path)
        for path in _tracked()
        if path.suffix in {".py", ".md", ".toml", ".ini", ".yml", ".json"}
        and path.exists()
        and needle.search(path.read_text(encoding="utf-8"))
    ]
    assert not found
