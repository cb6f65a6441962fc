"""The shape of the repository: layers without circles, plain docstrings, folders that agree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sgl_mlx", "models", "cli", "metal_kernels", "cpu_kernels", "benchmarks")

RIDDLES = ("Of", "That", "Those", "What")
ROOT_OF_RUNTIME = 8
LINES_OF_A_FILE = 400
LONGER = {"tests/tokenizer/test_tokenizer.py": 455}
"""Longer files still to be split, each with the length it must not exceed."""


@cache
def sources() -> Mapping[str, Path]:
    """Every module of the package by the name it is imported under; links are not followed."""
    return dict(_modules())


def _modules() -> Iterator[tuple[str, Path]]:
    for folder in PACKAGES:
        prefix = () if folder == "sgl_mlx" else ("sgl_mlx",)
        for file in sorted(_python_files(folder)):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join((*prefix, *parts)), file


def _python_files(folder: str) -> Iterator[Path]:
    for file in (ROOT / folder).rglob("*.py"):
        inside = file.relative_to(ROOT).parents
        if not any((ROOT / parent).is_symlink() for parent in inside):
            yield file


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


# -- circles --------------------------------------------------------------------------------------


def imports(tree: ast.AST, known: Mapping[str, object]) -> Iterator[str]:
    """The known modules that a module imports anywhere: deferred and for typing alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected components of more than one module."""
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) | {name} for name in graph
    }
    return {group for group in groups if len(group) > 1}


def _reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = sources()
    graph = {name: set(imports(parsed(file), known)) - {name} for name, file in known.items()}
    assert circles(graph) == set()


@pytest.mark.parametrize(
    "source",
    ["import b", "from b import x", "def f():\n    import b", "if TYPE_CHECKING:\n    import b"],
)
def test_a_circle_is_found_however_the_import_is_written(source: str) -> None:
    known = {"a": source, "b": "from a import y", "c": "import a"}
    graph = {name: set(imports(ast.parse(text), known)) for name, text in known.items()}
    assert circles(graph) == {frozenset({"a", "b"})}


# -- words ----------------------------------------------------------------------------------------


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring; a string below an assignment documents its name."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value


def riddles(files: Sequence[Path]) -> list[str]:
    opening = re.compile(rf"\s*({'|'.join(RIDDLES)})\b")
    return [
        f"{file.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0]}"
        for file in files
        for line, text in docstrings(parsed(file))
        if opening.match(text)
    ]


def test_a_docstring_begins_with_a_verb_or_a_noun() -> None:
    files = [file for folder in (*PACKAGES, "tests") for file in _python_files(folder)]
    assert riddles(files) == []


# -- layout ---------------------------------------------------------------------------------------


def test_the_root_of_the_runtime_is_a_handful_of_files() -> None:
    assert len(list((ROOT / "sgl_mlx/runtime").glob("*.py"))) <= ROOT_OF_RUNTIME


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {
        file.relative_to(ROOT).as_posix(): len(file.read_text("utf-8").splitlines())
        for folder in (*PACKAGES, "tests", "examples")
        for file in _python_files(folder)
    }
    long = {name: n for name, n in lengths.items() if n > LONGER.get(name, LINES_OF_A_FILE)}
    assert long == {}


def test_tests_lie_in_the_folder_of_what_they_are_about() -> None:
    tests = (ROOT / "tests").rglob("test_*.py")
    folders = {file.parent.relative_to(ROOT / "tests") for file in tests}
    own = {Path(), Path("docs")}
    missing = [
        folder.as_posix()
        for folder in folders - own
        if not (ROOT / folder).is_dir() and not (ROOT / "sgl_mlx" / folder).is_dir()
    ]
    assert missing == []


def test_every_command_has_a_test_file() -> None:
    group = (ROOT / "cli/commands.py").read_text("utf-8")
    commands = re.findall(r"^from sgl_mlx\.cli\.(\w+) import", group, re.MULTILINE)
    assert commands
    tests = ROOT / "tests/cli"
    found = {
        name: [*tests.glob(f"test_{name}*.py"), *tests.glob(f"{name}/test_*.py")]
        for name in commands
    }
    assert [name for name, files in found.items() if not files] == []


# -- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["metal_kernels/build.py", "tests/metal_kernels/mutations.py"])
def test_every_kernel_has_a_spec_and_faults_that_tests_must_find(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    kernels = [source.stem for source in (ROOT / "metal_kernels").glob("*.metal")]
    assert kernels
    assert [name for name in kernels if name not in text] == []


def test_every_policy_is_named_where_it_is_chosen() -> None:
    policies = (ROOT / "sgl_mlx/runtime/scheduler/policy.py").read_text("utf-8")
    names = re.findall(r'^    "([\w-]+)": \w+,$', policies, re.MULTILINE)
    config = (ROOT / "sgl_mlx/runtime/config.py").read_text("utf-8")
    description = re.findall(r"schedule_policy: (.*(?:\n {12}.*)*)", config)[0]
    assert names
    assert [name for name in names if name not in description] == []


# -- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "tests/README.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`([\w.]+/[\w./]*)`", (ROOT / page).read_text("utf-8"))
    paths = [name if "NAME" not in name else name[: name.rindex("/")] for name in named]
    homes = (ROOT, ROOT / "sgl_mlx", ROOT / "sgl_mlx/runtime", ROOT / "tests")
    assert paths
    assert [path for path in paths if not any((home / path).exists() for home in homes)] == []


def test_the_page_of_the_language_has_every_word() -> None:
    words = [
        alias.name
        for node in ast.walk(parsed(ROOT / "sgl_mlx/__init__.py"))
        if isinstance(node, ast.ImportFrom) and node.module == "sgl_mlx.lang.words"
        for alias in node.names
    ]
    page = (ROOT / "docs/language.md").read_text("utf-8")
    assert words
    assert [word for word in words if not re.search(rf"\b{word}\b", page)] == []
