"""The parts of the compiler may import each other only as the table below allows.

The rules are checked on the syntax tree, so a forbidden import is found even inside a function. The second half of this
file checks the checker on fabricated packages: every rule has a package that breaks it and nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bitwright"

COMPILER = frozenset({"frontend", "passes", "codegen", "autotune", "runtime"})
VERBS = frozenset({"compiling", "budgets", "timing", "study", "cli"})
"""What puts the parts of the compiler together; nothing below may import it."""
PARTS = COMPILER | VERBS | {"harness", "plans"}
MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "frontend": frozenset(),
    "codegen": frozenset(),
    "runtime": frozenset(),
    "harness": frozenset({"runtime"}),
    "passes": frozenset({"codegen"}),
    "autotune": frozenset({"codegen"}),
    "plans": frozenset({"codegen"}),
    "compiling": COMPILER,
    "wiring": COMPILER | {"compiling"},
    "timing": COMPILER | {"compiling", "wiring"},
    "budgets": COMPILER | {"plans", "compiling", "timing", "wiring"},
    "study": PARTS - {"cli"} | {"wiring"},
    "cli": PARTS | {"wiring"},
}
"""Part -> other parts it may import; everybody may import core and itself."""

WIRING = frozenset({"__init__", "diagnosis", "inspection", "pipeline"})
"""Root modules that put the parts together, for the verbs; every other root module is core."""

NEVER_IN_RUNTIME = frozenset({"tvm", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "transformers"})
SLOW = frozenset({"tvm", "torch", "transformers", "onnxruntime", "xgboost", "lm_eval"})
"""Packages that take long to import: never on the way to `bitwright --help`."""


@dataclass(frozen=True)
class Import:
    """One imported module: a file of the package (``inside``) or the first name of a third-party one."""

    name: str
    inside: bool
    line: int
    at_import_time: bool


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    imports: tuple[Import, ...]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def part(self) -> str:
        _, *rest = self.name.split(".")
        if rest and rest[0] in PARTS:
            return rest[0]
        if rest == ["__main__"]:
            return "cli"
        return "wiring" if (rest[0] if rest else "__init__") in WIRING else "core"

    def loaded(self) -> Iterator[Import]:
        return (entry for entry in self.imports if entry.at_import_time)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def import_statements(node: ast.AST, at_import_time: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import under ``node`` that can be executed, with whether importing the module executes it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import_time
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for branch in child.orelse:
                yield from import_statements(branch, at_import_time)
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from import_statements(child, at_import_time and not inner)


def module_names(package: Path) -> dict[str, Path]:
    names = {}
    for path in sorted(package.rglob("*.py")):
        dotted = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(dotted[:-1] if dotted[-1] == "__init__" else dotted)] = path
    return names


def read_package(package: Path) -> dict[str, Module]:
    names = module_names(package)

    def targets(statement: ast.Import | ast.ImportFrom, importer: str) -> Iterator[str]:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
            return
        base = statement.module or ""
        if statement.level:
            is_package = names[importer].name == "__init__.py"
            anchor = importer.split(".")
            anchor = anchor[: len(anchor) - statement.level + is_package]
            base = ".".join([*anchor, *([base] if base else [])])
        for alias in statement.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in names else base

    modules = {}
    for name, path in names.items():
        found = []
        for statement, at_import_time in import_statements(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for target in dict.fromkeys(targets(statement, name)):
                inside = target.split(".")[0] == package.name
                short = target if inside else target.split(".")[0]
                found.append(Import(short, inside, statement.lineno, at_import_time))
        modules[name] = Module(name, path, tuple(found))
    return modules


def part_violations(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        allowed = MAY_IMPORT[module.part] | {module.part, "core"}
        for entry in module.imports:
            where = f"{module.name}:{entry.line}"
            if not entry.inside:
                if module.part == "runtime" and entry.name in NEVER_IN_RUNTIME:
                    yield f"{where}: the runtime never imports {entry.name}"
            elif entry.name not in modules:
                yield f"{where}: {entry.name} does not exist"
            elif modules[entry.name].part not in allowed:
                yield f"{where}: {module.part} imports {modules[entry.name].part} ({entry.name})"


def reach(start: Module, modules: dict[str, Module]) -> Iterator[tuple[Import, tuple[str, ...]]]:
    """Third-party imports that importing ``start`` executes, each with the chain of modules that leads to it.

    Importing a.b.c executes a and a.b as well.
    """
    seen = {start.name}
    queue: list[tuple[Module, tuple[str, ...]]] = [(start, (start.name,))]
    while queue:
        module, chain = queue.pop(0)
        following = [".".join(module.name.split(".")[:depth]) for depth in range(1, module.name.count(".") + 1)]
        for entry in module.loaded():
            if entry.inside:
                following.append(entry.name)
            else:
                yield entry, chain
        for name in following:
            if name in modules and name not in seen:
                seen.add(name)
                queue.append((modules[name], (*chain, name)))


def slow_import_violations(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.part == "cli" or module.is_package:
            for entry, chain in reach(module, modules):
                if entry.name in SLOW:
                    yield f"{' -> '.join(chain)}: importing it loads {entry.name}"


def runtime_reach_violations(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.part == "runtime":
            for entry, chain in reach(module, modules):
                if entry.name in NEVER_IN_RUNTIME and len(chain) > 1:
                    yield f"{' -> '.join(chain)}: the runtime loads {entry.name}"


def cycles(modules: dict[str, Module]) -> Iterator[str]:
    """Circles of module-level imports, each once."""
    graph = {
        name: [entry.name for entry in module.loaded() if entry.name in modules and entry.name != name]
        for name, module in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> Iterator[str]:
        if name in path:
            yield "circular import: " + " -> ".join([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for target in graph[name]:
            yield from visit(target, [*path, name])
        done.add(name)

    for name in graph:
        yield from visit(name, [])


def violations(package: Path) -> list[str]:
    modules = read_package(package)
    rules = (part_violations, slow_import_violations, runtime_reach_violations, cycles)
    return [line for rule in rules for line in rule(modules)]


def test_bitwright_keeps_the_import_rules() -> None:
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


def test_every_part_of_the_package_is_in_the_table() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == PARTS


CLEAN = {
    "__init__.py": "def compile():\n    from demo.pipeline import run\n    return run\n",
    "errors.py": "",
    "target.py": "import demo.errors\ndef features():\n    import tvm\n",
    "pipeline.py": "from demo import frontend, passes\nfrom demo.runtime import session\n",
    "frontend/__init__.py": "from demo.errors import InputError\n",
    "frontend/reader.py": "import torch\nfrom demo import errors\n",
    "passes/__init__.py": "",
    "passes/lower.py": "import tvm\nfrom demo.codegen.packing import pack\n",
    "codegen/__init__.py": "from . import packing\n",
    "codegen/packing.py": "from ..errors import InputError\nfrom typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from demo.passes import lower\n",
    "runtime/__init__.py": "",
    "runtime/session.py": "import tvm_ffi\nfrom demo.target import features\n",
    "cli/__init__.py": "",
    "cli/main.py": "import argparse\ndef main():\n    import torch\n    from demo import pipeline\n",
}


def fabricate(tmp_path: Path, changes: dict[str, str]) -> Path:
    package = tmp_path / "demo"
    for name, text in {**CLEAN, **changes}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_a_clean_package_has_no_violations(tmp_path: Path) -> None:
    assert violations(fabricate(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "errors.py",
            "from demo.codegen import packing\n",
            "demo.errors:1: core imports codegen (demo.codegen.packing)",
        ),
        (
            "frontend/reader.py",
            "from demo import passes\n",
            "demo.frontend.reader:1: frontend imports passes (demo.passes)",
        ),
        (
            "frontend/reader.py",
            "import demo.pipeline\n",
            "demo.frontend.reader:1: frontend imports wiring (demo.pipeline)",
        ),
        ("passes/lower.py", "from ..cli import main\n", "demo.passes.lower:1: passes imports cli (demo.cli.main)"),
        (
            "codegen/packing.py",
            "def f():\n    from ..passes import lower\n",
            "demo.codegen.packing:2: codegen imports passes (demo.passes.lower)",
        ),
        ("passes/lower.py", "import demo.absent\n", "demo.passes.lower:1: demo.absent does not exist"),
        (
            "runtime/session.py",
            "def f():\n    import torch.nn\n",
            "demo.runtime.session:2: the runtime never imports torch",
        ),
        (
            "target.py",
            "import tvm\n",
            "demo.runtime.session -> demo.target: the runtime loads tvm",
        ),
        (
            "cli/main.py",
            "if True:\n    from demo.passes import lower\n",
            "demo.cli.main -> demo.passes.lower: importing it loads tvm",
        ),
        ("codegen/__init__.py", "import xgboost\n", "demo.codegen: importing it loads xgboost"),
        (
            "errors.py",
            "from demo import target\n",
            "circular import: demo.errors -> demo.target -> demo.errors",
        ),
    ],
)
def test_a_broken_rule_is_reported(tmp_path: Path, file: str, text: str, expected: str) -> None:
    assert expected in violations(fabricate(tmp_path, {file: text}))
