"""The verbs on the toy artifact: output, JSON, exit codes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitwright.runtime.artifact import Artifact
from tests.cli.answers import failed, json_of

PROMPT = "Once upon"


def test_verify(process: Any, command: Any, artifact_path: Path) -> None:
    done = process("verify", artifact_path)
    assert done.returncode == 0
    assert b"toy, 7 files, " in done.stdout and b"intact" in done.stdout
    document = json_of(command("verify", artifact_path, "--json"))
    assert document["ok"] is True
    assert document["bytes"] == (artifact_path / "weights.safetensors").stat().st_size
    assert set(document["files"]) == set(Artifact.open(artifact_path).manifest.files)


def test_verify_finds_damage(command: Any, artifact_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact_path, tmp_path / "copy"))
    with (copy / "weights.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    failed(command("verify", copy), 3, "a file of the artifact was changed")
    failed(command("verify", tmp_path / "nothing"), 3, "there is no artifact folder")


def test_verify_refuses_a_foreign_target(command: Any, tmp_path: Path, toy: Any, executable: Any) -> None:
    from bitwright.runtime.artifact import TargetRecord
    from tests.runtime import toy as toy_model

    target = TargetRecord(arch="x86_64", features=("avx1024",), fingerprint="f00")
    toy_model.write(tmp_path / "a", toy, executable, target=target)
    failed(command("verify", tmp_path / "a"), 5, "its code uses avx1024, which this CPU does not have")


def test_run_streams_what_the_session_says(process: Any, artifact_path: Path) -> None:
    import bitwright

    session = bitwright.load(artifact_path, threads=1)
    done = process("run", artifact_path, PROMPT, "--raw", "-n", "12")
    assert done.returncode == 0
    assert done.stdout.decode() == session.generate(PROMPT, max_tokens=12) + "\n"
    assert done.stderr.decode().startswith("[9 prompt tokens, first token after ")
    assert "stopped by length]" in done.stderr.decode()


def test_run_uses_the_chat_template_unless_raw(command: Any, artifact_path: Path) -> None:
    chat = json_of(command("run", artifact_path, "hi", "--json", "-n", "3"))
    raw = json_of(command("run", artifact_path, "hi", "--json", "-n", "3", "--raw"))
    system = json_of(command("run", artifact_path, "hi", "--json", "-n", "3", "--system", "Be good"))
    # user marker, h, i, end; assistant marker. With a system message: its marker, 7 letters and end before that.
    assert (chat["prompt_tokens"], raw["prompt_tokens"], system["prompt_tokens"]) == (5, 2, 14)


def test_run_prints_one_json_document(process: Any, artifact_path: Path) -> None:
    document = json_of(process("run", artifact_path, PROMPT, "--json", "-n", "4", "--seed", "3", "--temperature", "9"))
    assert document["new_tokens"] == len(document["ids"]) == 4
    assert document["stop_reason"] == "length"
    assert set(document) >= {"text", "bytes", "first_token_seconds", "decode_tokens_per_second"}


def test_run_reads_the_prompt_from_stdin(command: Any, artifact_path: Path) -> None:
    one = command("run", artifact_path, "--raw", "-n", "5", stdin="é".encode())
    two = command("run", artifact_path, "-", "--raw", "-n", "5", stdin="é".encode())
    three = command("run", artifact_path, "é", "--raw", "-n", "5")
    assert one.stdout == two.stdout == three.stdout != b""


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "text"),
    [
        ([""], b"", 2, "the prompt is empty"),
        ([" \n"], b"", 2, "the prompt is empty"),
        (["-"], b"", 2, "the prompt is empty"),
        (["-"], b"a\xff", 3, "the text is not valid UTF-8\n  where: stdin, byte 1"),
        ([b"a\xff"], b"", 2, "the text is not valid Unicode"),
        (["x" * 100], b"", 2, "the context of this artifact is 48 tokens"),
        (["x", "-n", "0"], b"", 2, "max_tokens is 0"),
        (["x", "--temperature", "-1"], b"", 2, "temperature is -1.0"),
        (["x", "--temperature", "nan"], b"", 2, "temperature is nan"),
        (["x", "--top-p", "2"], b"", 2, "top_p is 2.0"),
        (["x", "--top-k", "-3"], b"", 2, "top_k is -3"),
        (["x", "--min-p", "1"], b"", 2, "min_p is 1.0"),
        (["x", "--repetition-penalty", "0"], b"", 2, "repetition_penalty is 0.0"),
        (["x", "--seed", "-1"], b"", 2, "seed is -1"),
        (["x", "--stop", ""], b"", 2, "'' is no stop string"),
        (["x", "--stop", b"\xff"], b"", 2, r"'\udcff' is no stop string"),
        (["-"], b"x" * ((4 << 20) + 1), 3, "the text is too long\n  where: stdin\n  limit: at most 4194304 bytes"),
        (["x", "-t", "1000"], b"", 2, "1000 threads were asked for"),
        (["x", "--keep", "3"], b"", 2, "tokens are to be kept, but none are dropped"),
        (["x", "--context-shift", "--keep", "25"], b"", 2, "25 tokens at the beginning are to be kept"),
        (["x", "--raw", "--system", "y"], b"", 2, "a system message needs a chat template"),
    ],
)
def test_run_refuses(
    command: Any, artifact_path: Path, arguments: list[Any], stdin: bytes, code: int, text: str
) -> None:
    failed(command("run", artifact_path, *arguments, stdin=stdin), code, text)


def test_run_goes_on_behind_the_context_if_asked(command: Any, artifact_path: Path) -> None:
    arguments = ["run", artifact_path, "x" * 100, "--raw", "--context-shift", "--json", "-n", "60"]
    document = json_of(command(*arguments, "--keep", "2"))
    # 52 of the prompt's tokens too many, 23 dropped at a time: 69. The answer then drops 23 twice.
    assert (document["prompt_tokens"], document["new_tokens"], document["dropped_tokens"]) == (100, 60, 69 + 2 * 23)
    shown = command("run", artifact_path, "x" * 100, "--raw", "--context-shift", "-n", "1").stderr.decode()
    assert "1 tokens, 66 older ones dropped, stopped by length]" in shown


def test_run_refuses_a_damaged_artifact(command: Any, artifact_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact_path, tmp_path / "copy"))
    (copy / "model.so").write_bytes(b"")
    failed(command("run", copy, "hello"), 3, "a file of the artifact has another size")


def test_a_reader_that_leaves_ends_run_quietly(artifact_path: Path) -> None:
    line = f"{sys.executable} -m bitwright.cli run {artifact_path} hi --raw -n 40 | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
    assert len(done.stdout) == 1
    assert b"Traceback" not in done.stderr


def test_chat_through_a_pipe_answers_each_line(command: Any, artifact_path: Path) -> None:
    done = command("chat", artifact_path, "-n", "2", stdin=b"a\n\n/reset\na\n/exit\nignored\n")
    assert done.returncode == 0
    assert done.stderr == b"starting over\n"
    first, second = done.stdout.decode().rstrip("\n").split("\n")[-2:]
    assert first == second


def test_chat_remembers_the_conversation(process: Any, artifact_path: Path) -> None:
    import bitwright

    session = bitwright.load(artifact_path, threads=1)
    messages = [{"role": "system", "content": "s"}]
    expected = ""
    for text in ("a", "b"):
        messages.append({"role": "user", "content": text})
        answer = session.generate(messages=messages, max_tokens=2)
        messages.append({"role": "assistant", "content": str(answer)})
        expected += answer + "\n"
    done = process("chat", artifact_path, "-n", "2", "--system", "s", stdin=b"a\nb\n")
    assert done.stdout.decode() == expected


def test_chat_ends_with_an_error_when_the_conversation_is_too_long(command: Any, artifact_path: Path) -> None:
    done = command("chat", artifact_path, stdin=b"x" * 100 + b"\n")
    failed(done, 2, "the context of this artifact is 48 tokens")


def test_chat_goes_on_behind_the_context_if_asked(command: Any, artifact_path: Path) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(12))
    arguments = ["chat", artifact_path, "-n", "2", "--system", "s"]
    failed(command(*arguments, "--stop", "?", stdin=b"x" * 100 + b"\n"), 2, "the context of this artifact is 48 tokens")
    done = command(*arguments, "--context-shift", stdin=lines)
    assert (done.returncode, done.stdout.decode().count("\n") >= 12) == (0, True)


def test_chat_refuses_a_model_without_template(command: Any, tmp_path: Path, toy: Any, executable: Any) -> None:
    from tests.runtime import toy as toy_model

    toy_model.write(tmp_path / "a", toy, executable)
    failed(command("chat", tmp_path / "a", stdin=b"hi\n"), 5, "the artifact has no chat_template.jinja")


def test_chat_refuses_invalid_utf8(command: Any, artifact_path: Path) -> None:
    failed(command("chat", artifact_path, stdin=b"\xff\n"), 3, "the message is not valid UTF-8")


def test_interrupting_a_pipe_is_exit_code_130(artifact_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bitwright.cli", "chat", str(artifact_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background inherits an ignored SIGINT; the command is to see it all the same.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"a\n")
    process.stdin.flush()
    process.stdout.read(1)  # it is past its imports
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.communicate()[1] == b"interrupted\n"


def test_bench(command: Any, artifact_path: Path) -> None:
    arguments = ["bench", artifact_path, "-p", "8", "-n", "4", "-d", "0,20", "-t", "1", "-r", "2"]
    document = json_of(command(*arguments, "--json"))
    assert [(row["test"], row["depth"]) for row in document["rows"]] == [
        ("pp8", 0),
        ("tg4", 0),
        ("pp8", 20),
        ("tg4", 20),
    ]
    assert set(document["rows"][0]["tokens_per_second"]) == {"median", "mean", "sd"}
    table = command(*arguments).stdout.decode().splitlines()
    assert table[0].split()[:3] == ["test", "depth", "threads"]
    assert len(table) == 5


def test_bench_profile(command: Any, artifact_path: Path) -> None:
    arguments = ["bench", artifact_path, "-p", "8", "-n", "4", "-t", "1", "-r", "2", "--profile"]
    profiles = json_of(command(*arguments, "--json"))["profiles"]
    assert [entry["test"] for entry in profiles] == ["pp8", "tg1"]
    for entry in profiles:
        inside = sum(kernel["seconds"] for kernel in entry["kernels"])
        assert entry["outside_kernels"]["seconds"] == pytest.approx(entry["seconds"] - inside)
    shown = command(*arguments).stdout.decode()
    assert "tg1 at depth 0, threads 1: " in shown
    assert len([line for line in shown.splitlines() if line.startswith("outside kernels ")]) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-p", "x"], "'x' is no list of counts"),
        (["-p", "1" * 5000], f"'{'1' * 80}' is no list of counts"),
        (["-d", "-5"], "'-5' is no list of counts"),
        (["-n", ""], "'' is no list of counts"),
        (["-p", "0", "-n", "0"], "there is nothing to measure"),
        (["-p", "8", "-n", "4", "-d", "45"], "pp8 at depth 45 needs 53 tokens of context"),
        (["-p", "8", "-n", "4", "-t", "0"], "0 threads were asked for"),
        (["-p", "8", "-n", "4", "-r", "0"], "0 repetitions were asked for"),
    ],
)
def test_bench_refuses(command: Any, artifact_path: Path, arguments: list[str], text: str) -> None:
    failed(command("bench", artifact_path, *arguments), 2, text)


def test_tables_through_a_pipe_have_no_trailing_spaces(command: Any, artifact_path: Path, text_file: Path) -> None:
    table = command("eval", artifact_path, "--text", text_file, "--ctx", "16").stdout.decode().splitlines()
    assert len(table) == 5 and table == [line.rstrip() for line in table]


def test_a_narrow_terminal_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from bitwright.cli import console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    long = " ".join(f"feature{number}" for number in range(12))
    console.print_table(("name", "value"), [["hidden features", long]])
    text = shown.getvalue()
    assert "hidden features" in text and "…" not in text
    assert all(f"feature{number}" in text for number in range(12))
