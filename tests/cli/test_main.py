"""The frame of the command line: help at once, exit codes, errors on stderr."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.cli import main
from bitwright.errors import (
    BitwrightError,
    InfeasibleError,
    InputError,
    InternalError,
    NumericalError,
    UnsupportedError,
    UsageError,
)

ROOT = Path(bitwright.__file__).parents[1]


def test_help_answers_within_half_a_second(process: Any) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = process("--help")
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(times) < 0.5
    for verb in main.VERBS:
        assert f"\n  {verb} ".encode() in done.stdout


def test_help_imports_nothing_slow() -> None:
    script = (
        "import sys; from bitwright.cli import main; code = main.run(['--help']);"
        "slow = {'numpy', 'tvm', 'tvm_ffi', 'torch', 'pydantic', 'tokenizers', 'jinja2', 'rich', 'onnx'};"
        "print(code, sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.split("\n")[0] == "0 []"


def test_importing_the_package_imports_nothing_slow() -> None:
    script = "import sys, bitwright; print(sorted({'numpy', 'tvm_ffi', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "bitwright", "--help"], capture_output=True, cwd=ROOT, check=True)
    assert b"Usage: bitwright " in done.stdout


def test_the_version_is_the_one_of_the_project_file(capsys: Any) -> None:
    assert f'version = "{bitwright.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"bitwright {bitwright.__version__}\n"


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = bitwright.nothing
    assert {"compile", "load", "__version__"} <= set(dir(bitwright))


@pytest.mark.parametrize("verb", ["run", "chat", "bench", "eval", "verify"])
def test_every_verb_has_help(verb: str, capsys: Any) -> None:
    assert main.run([verb, "--help"]) == 0
    assert f"Usage: bitwright {verb} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["verify"], ["verify", "--nothing"], ["run", "x", "y", "--top-k", "many"], ["verify", "a", "b"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: Any) -> None:
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def failing(error: BaseException) -> Any:
    class Command:
        def make_context(self, *arguments: Any, **options: Any) -> Any:
            raise error

    return lambda name: Command()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("w"), 2),
        (InputError("w"), 3),
        (InfeasibleError("w"), 4),
        (UnsupportedError("w"), 5),
        (NumericalError("w"), 6),
        (InternalError("w"), 70),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit("143"), 143),
        (ZeroDivisionError("oops"), 70),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(main, "_load_verb", failing(error))
    assert main.run(["verify", "x"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_error_shows_what_where_limit_and_remedy(monkeypatch: Any, capsys: Any) -> None:
    error = InputError("it is broken", where="file", limit="at most 3", remedy="mend it")
    monkeypatch.setattr(main, "_load_verb", failing(error))
    main.run(["verify", "x"])
    assert capsys.readouterr().err == "error: it is broken\n  where: file\n  limit: at most 3\n  remedy: mend it\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), BitwrightError("oops")])
@pytest.mark.parametrize("way", ["option", "environment"])
def test_tracebacks_on_request(error: Exception, way: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(main, "_load_verb", failing(error))
    if way == "environment":
        monkeypatch.setenv("BITWRIGHT_TRACEBACK", "1")
    assert main.run([*(["--traceback"] if way == "option" else []), "verify", "x"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_internal_error_says_how_to_see_more(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(main, "_load_verb", failing(ZeroDivisionError("oops")))
    main.run(["verify", "x"])
    assert capsys.readouterr().err == (
        "error: internal error: ZeroDivisionError: oops\n"
        "  remedy: run `bitwright --traceback ...` or set BITWRIGHT_TRACEBACK=1 to see where, and report it\n"
    )


def test_a_verb_that_is_not_installed_breaks_only_itself(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(main.VERBS, "absent", "Not there.")
    assert main.run(["absent"]) == 5
    assert "this installation has no verb 'absent'" in capsys.readouterr().err
    assert main.run(["--help"]) == 0


def test_a_missing_module_inside_a_verb_is_not_mistaken_for_a_missing_verb(monkeypatch: Any, capsys: Any) -> None:
    def load(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(main, "import_module", load)
    assert main.run(["verify", "x"]) == 70
    assert "ModuleNotFoundError: No module named 'torch'" in capsys.readouterr().err
