"""Peers' packages are installed once, in folders of their own, again when what they need changes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.packages import AVX2_LLAMA, Package, environment


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--target") + 1]).mkdir(parents=True, exist_ok=True)
        calls.append((command, env["CMAKE_ARGS"]))
        return subprocess.CompletedProcess(command, 1 if "--fail" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_what_the_environment_has_is_not_installed(tmp_path: Path, pip: list[Any]) -> None:
    assert Package("numpy", "numpy", "peers.txt").ensure(tmp_path) is None
    assert not pip


def test_a_build_of_its_own_is_installed_once_and_again_when_its_flags_change(tmp_path: Path, pip: list[Any]) -> None:
    package = Package("own", "numpy", "peers.txt", flags="-DA=1")
    assert package.ensure(tmp_path) == package.ensure(tmp_path) == tmp_path / "own"
    Package("own", "numpy", "peers.txt", flags="-DA=2").ensure(tmp_path)
    assert [flags for _, flags in pip] == ["-DA=1", "-DA=2"]


def test_an_installation_that_fails_is_not_taken_for_one(tmp_path: Path, pip: list[Any]) -> None:
    broken = Package("own", "absent_module", "peers.txt", ("--fail",))
    for _ in range(2):
        with pytest.raises(SystemExit, match="own could not be installed"):
            broken.ensure(tmp_path)
    assert len(pip) == 2


def test_the_avx2_build_is_made_from_source_without_the_cache(tmp_path: Path, pip: list[Any]) -> None:
    AVX2_LLAMA.ensure(tmp_path)
    ((command, flags),) = pip
    assert {"--no-cache-dir", "--no-binary"} <= set(command)
    assert "-DGGML_NATIVE=OFF" in flags and "-DGGML_AVX512=OFF" in flags and "-DGGML_AVX_VNNI=OFF" in flags


def test_a_folder_of_packages_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert environment(tmp_path)["PYTHONPATH"] == f"{tmp_path}:/elsewhere"
    assert environment(None)["PYTHONPATH"] == "/elsewhere"
