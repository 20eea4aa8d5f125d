"""Writing, verifying and refusing artifacts: never half a folder, never code that was not verified."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.errors import BitwrightError, InputError, UnsupportedError, UsageError
from bitwright.runtime.artifact import Artifact, TargetRecord, check_destination, replace
from bitwright.runtime.artifact.manifest import Manifest
from bitwright.runtime.host import Host
from tests.runtime import toy as toy_model

ALL_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "model.so",
    "plan.json",
    "report.md",
    "tokenizer.json",
    "weights.safetensors",
)


@pytest.fixture
def copy(artifact_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact_path, tmp_path / "copy"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it the digest of its new content, as a careful hand would."""
    from bitwright.runtime.artifact.manifest import _self_digest

    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document.pop("self_sha256")
    change(document)
    path.write_text(json.dumps({**document, "self_sha256": _self_digest(document)}))


def refused(folder: Path, error: type[BitwrightError]) -> BitwrightError:
    """Load must fail with ``error``, and without opening the library."""
    before = Path("/proc/self/maps").read_text().count(str(folder))
    with pytest.raises(error) as caught:
        bitwright.load(folder, threads=1)
    assert Path("/proc/self/maps").read_text().count(str(folder)) == before
    return caught.value


# Writing -------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_was_given_and_nothing_else(artifact_path: Path, parts: dict[str, Any]) -> None:
    assert sorted(path.name for path in artifact_path.iterdir()) == sorted((*ALL_FILES, "manifest.json"))
    assert (artifact_path / "tokenizer.json").read_bytes() == parts["tokenizer_json"]
    assert json.loads((artifact_path / "generation_config.json").read_text()) == parts["generation"]
    assert artifact_path.stat().st_mode & 0o777 == 0o755
    artifact = Artifact.open(artifact_path)
    artifact.verify()
    assert sorted(artifact.manifest.files) == sorted(ALL_FILES)
    assert artifact.manifest.run_bytes == (artifact_path / "weights.safetensors").stat().st_size
    assert list(artifact_path.parent.iterdir()) == [artifact_path]


def test_the_manifest_is_byte_stable(artifact_path: Path) -> None:
    text = (artifact_path / "manifest.json").read_bytes()
    assert Artifact.open(artifact_path).manifest.to_json() == text


def test_existing_things_are_not_replaced(tmp_path: Path, toy: Any, executable: Any) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(UsageError) as caught:
            toy_model.write(tmp_path / name, toy, executable, overwrite=True)
        assert caught.value.what == "the output exists and is no artifact"
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_an_artifact_is_replaced_only_when_asked_to(tmp_path: Path, toy: Any, executable: Any) -> None:
    toy_model.write(tmp_path / "a", toy, executable, report="old")
    with pytest.raises(UsageError) as caught:
        toy_model.write(tmp_path / "a", toy, executable, report="new")
    assert caught.value.what == "the artifact exists already"
    assert (tmp_path / "a" / "report.md").read_text() == "old"
    toy_model.write(tmp_path / "a", toy, executable, overwrite=True)
    assert not (tmp_path / "a" / "report.md").exists()
    Artifact.open(tmp_path / "a").verify()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_replacing_works_on_file_systems_that_cannot_exchange(
    tmp_path: Path, toy: Any, executable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_model.write(tmp_path / "a", toy, executable, report="old")
    monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    toy_model.write(tmp_path / "a", toy, executable, report="new", overwrite=True)
    assert (tmp_path / "a" / "report.md").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("stage", ["library", "weights", "sync"])
@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UsageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("code generation failed"), RuntimeError),
    ],
)
def test_a_failed_write_leaves_everything_as_it_was(
    tmp_path: Path,
    toy: Any,
    executable: Any,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    there_before: bool,
    failure: BaseException,
    error: type[BaseException],
) -> None:
    if there_before:
        toy_model.write(tmp_path / "a", toy, executable, report="old")

    def fail(*arguments: Any) -> None:
        raise failure

    options: dict[str, Any] = {"report": "new", "overwrite": True}
    if stage == "library":
        options["export_library"] = fail
    elif stage == "weights":
        monkeypatch.setattr("bitwright.runtime.artifact.write.write_tensors", fail)
    else:
        monkeypatch.setattr(replace, "_sync", fail)
    with pytest.raises(error) as caught:
        toy_model.write(tmp_path / "a", toy, executable, **options)
    monkeypatch.undo()
    if isinstance(caught.value, UsageError):
        assert caught.value.what == "the artifact could not be written: No space left on device"
        assert "bytes are free there" in str(caught.value.limit)
    assert [path.name for path in tmp_path.iterdir()] == (["a"] if there_before else [])
    if there_before:
        Artifact.open(tmp_path / "a").verify()
        assert (tmp_path / "a" / "report.md").read_text() == "old"


def test_the_kernels_own_refusal_to_write_leaves_nothing(tmp_path: Path, toy: Any, executable: Any) -> None:
    """A real write that fails half way, by the limit on file sizes (the kernel sends EFBIG instead of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # More than the object file of the library takes: when LLVM cannot write, it ends the process.
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
        with pytest.raises(UsageError, match="the artifact could not be written: File too large"):
            toy_model.write(tmp_path / "a", toy, executable, weights={"big": np.zeros(2_000_000, "uint8")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/a", "n" * 300])
def test_an_output_that_cannot_be_made_is_refused_before_long_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="the output cannot be made"):
        check_destination(tmp_path / name, overwrite=False)


def test_an_output_in_a_folder_without_permission_is_refused_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(UsageError, match="the output cannot be made: Permission denied") as caught:
        check_destination(tmp_path / "new" / "a", overwrite=False)
    assert caught.value.where == str(tmp_path)


def test_an_output_in_an_unwritable_place_is_a_usage_error(toy: Any, executable: Any) -> None:
    with pytest.raises(UsageError, match="the artifact could not be written"):
        toy_model.write(Path("/proc/artifact"), toy, executable)


# Verifying -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_changed_byte_in_any_file_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    error = refused(copy, InputError)
    assert error.what == "a file of the artifact was changed"
    assert error.where == str(copy / name)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_truncated_file_is_found(copy: Path, name: str) -> None:
    os.truncate(copy / name, (copy / name).stat().st_size - 1)
    error = refused(copy, InputError)
    assert error.what == "a file of the artifact has another size"
    assert error.where == str(copy / name)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    error = refused(copy, InputError)
    assert error.what == "a file of the artifact is missing"
    assert error.where == str(copy / name)


def test_an_extra_file_is_named(copy: Path) -> None:
    (copy / "extra.so").write_text("")
    error = refused(copy, InputError)
    assert error.what == "the artifact holds a file that its manifest does not list"
    assert error.where == str(copy / "extra.so")


@pytest.mark.parametrize("name", ["model.so", "weights.safetensors", "manifest.json"])
def test_symbolic_links_are_refused_even_to_the_right_content(copy: Path, tmp_path: Path, name: str) -> None:
    shutil.move(copy / name, tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    error = refused(copy, InputError)
    assert error.what == "a file of the artifact is a symbolic link"
    assert error.where == str(copy / name)


def test_a_pipe_in_place_of_a_file_does_not_hang(copy: Path) -> None:
    (copy / "model.so").unlink()
    os.mkfifo(copy / "model.so")
    assert refused(copy, InputError).what == "a file of the artifact is no plain file"


def test_something_else_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        assert refused(path, InputError).what == "there is no artifact folder"
    error = refused(tmp_path, InputError)
    assert (error.what, error.where) == ("the folder is no artifact: it holds no manifest.json", str(tmp_path))


# The manifest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the manifest is not JSON"),
        (b"{", "the manifest is not JSON"),
        (b"\xff\xfe", "the manifest is not JSON"),
        (b"[" * 100_000, "the manifest is not JSON"),
        (b"[]", "the manifest is not a JSON object"),
        (b'{"schema_version": 1}', "the manifest was changed after it was written"),
    ],
)
def test_a_manifest_that_is_none_is_refused(copy: Path, content: bytes, what: str) -> None:
    (copy / "manifest.json").write_bytes(content)
    assert refused(copy, InputError).what == what


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_another_schema_version_is_unsupported(copy: Path, version: Any) -> None:
    edit_manifest(copy, lambda document: document.update(schema_version=version))
    error = refused(copy, UnsupportedError)
    assert error.what == f"the artifact has schema version {version!r}"
    assert error.limit == "this bitwright reads version 1"


def test_a_changed_manifest_is_found(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"context": 48', '"context": 49'))
    assert refused(copy, InputError).what == "the manifest was changed after it was written"


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a field is missing": (lambda d: d.pop("weights"), "weights: Field required"),
    "an unknown field": (lambda d: d.update(surprise=1), "surprise: Extra inputs are not permitted"),
    "a wrong kind": (lambda d: d.update(kind="diffuser"), "kind: Input should be 'decoder' or 'encoder'"),
    "a context of text": (lambda d: d["interface"].update(context="48"), "interface.context: Input should be a valid"),
    "a context of zero": (lambda d: d["interface"].update(context=0), "interface.context: Input should be greater"),
    "a negative shape": (lambda d: d["state"][0].update(shape=[-1]), "state.0.shape.0: Input should be greater"),
    "an unknown dtype": (lambda d: d["state"][0].update(dtype="float8"), "state.0.dtype: Value error, 'float8' is"),
    "a path as file name": (
        lambda d: d["files"].update({"../model.so": d["files"].pop("model.so")}),
        "unknown names '../model.so'",
    ),
    "a short digest": (lambda d: d["files"]["model.so"].update(sha256="00"), "files.model.so.sha256: String should"),
    "no library": (lambda d: d["files"].pop("model.so"), "model.so not listed"),
    "a weight twice": (lambda d: d.update(weights=["embedding", "embedding"]), "a name appears twice"),
    "no decode": (lambda d: d["interface"].update(functions=["prefill"]), "a decoder needs decode, prefill, score"),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_an_inconsistent_manifest_is_refused(copy: Path, name: str) -> None:
    change, what = CHANGES[name]
    edit_manifest(copy, lambda document: (change(document), None)[1])
    error = refused(copy, InputError)
    assert error.what.startswith("the manifest is not valid: ")
    assert what in error.what


def test_weights_of_other_names_are_refused(copy: Path) -> None:
    edit_manifest(copy, lambda document: document.update(weights=["embedding", "head"]))
    with pytest.raises(InputError, match="the weights file and the manifest name different tensors"):
        bitwright.load(copy, threads=1)


def test_a_cache_larger_than_memory_is_refused_without_trying(copy: Path) -> None:
    edit_manifest(copy, lambda document: document["state"][0].update(shape=[2**40, 2**10]))
    with pytest.raises(UnsupportedError) as caught:
        bitwright.load(copy, threads=1)
    assert caught.value.what == "the cache does not fit into memory"
    assert f"it takes {2**52} bytes" in str(caught.value.limit)


def test_a_library_that_is_none_is_refused_though_its_digest_fits(tmp_path: Path, toy: Any, executable: Any) -> None:
    toy_model.write(tmp_path / "a", toy, executable, export_library=lambda path: path.write_bytes(b"no library"))
    with pytest.raises(InputError, match="the artifact's library cannot be loaded"):
        bitwright.load(tmp_path / "a", threads=1)


# The machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "limit"),
    [
        (
            TargetRecord(arch="x86_64", features=("avx2", "sse2", "avx1024vnni"), fingerprint="f00"),
            "its code uses avx1024vnni, which this CPU does not have",
        ),
        (TargetRecord(arch="riscv64", features=(), fingerprint="f00"), "it was compiled for riscv64, this machine is"),
    ],
)
def test_a_foreign_fingerprint_is_refused(
    tmp_path: Path, toy: Any, executable: Any, record: TargetRecord, limit: str
) -> None:
    toy_model.write(tmp_path / "a", toy, executable, target=record)
    error = refused(tmp_path / "a", UnsupportedError)
    assert error.what == "the artifact was compiled for another machine"
    assert "target fingerprint f00" in str(error.where)
    assert str(error.limit).startswith(limit)
    assert "--target" in str(error.remedy)


def test_features_are_compared_with_the_host_that_is_given(artifact_path: Path) -> None:
    artifact = Artifact.open(artifact_path)
    artifact.check_host(Host("x86_64", frozenset({"sse2", "avx"})))
    with pytest.raises(UnsupportedError, match="its code uses sse2"):
        artifact.check_host(Host("x86_64", frozenset({"avx"})))


@pytest.mark.parametrize("package", ["tvm", "tvm_ffi"])
def test_another_tvm_pair_is_refused(copy: Path, package: str) -> None:
    edit_manifest(copy, lambda document: document["versions"].update({package: "0.1"}))
    error = refused(copy, UnsupportedError)
    assert error.what == "the artifact was compiled with another TVM"
    assert "0.1" in str(error.limit)


def test_a_process_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM during the write, through the command line's handler."""
    script = (
        "import sys, os, signal, time; from pathlib import Path; from bitwright.cli import main;"
        "from bitwright.runtime.artifact.replace import new_folder; signal.signal(signal.SIGTERM, main._terminate);\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'part').write_text('x'); os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], timeout=60, check=False)
    assert done.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_artifacts_load_themselves(artifact_path: Path, toy: Any) -> None:
    session = Artifact.open(artifact_path).load(threads=1)
    assert isinstance(session.manifest, Manifest)
    np.testing.assert_array_equal(session.logits([1, 2]), toy.logits([1, 2]))
