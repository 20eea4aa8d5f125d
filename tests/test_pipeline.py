"""Real compiles of small models: the artifact computes what the torch interpreter computes from the same numbers."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bitwright import pipeline
from bitwright.compiling.calibration import calibrated
from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.options import Options, QuantizerName, make_options
from bitwright.passes.quantizers.methods import quantize
from bitwright.passes.quantizers.rtn import round_to_nearest
from bitwright.plan import Plan
from bitwright.runtime.artifact import Artifact
from bitwright.runtime.session import Session, load
from bitwright.scheme import LinearScheme, WeightScheme
from bitwright.target import Target
from tests.canonical_model import Shape, decoder

# Logits of these random models reach about 90; f32 rounding over two layers stays far below.
F32 = 2e-4
# Integer activations: error of a step of absmax / 127 per group, relative to the spread of the logits.
INT8_ACTIVATIONS = 0.03


def _compile(model: ImportedModel, folder: Path, **options: Any) -> Session:
    pipeline.compile(model, folder, context=64, chunk=16, **options)
    return load(folder)


def _ids(model: ImportedModel, count: int = 45) -> Any:
    return np.random.default_rng(7).integers(0, model.vocab, count)


def _dequantized(model: ImportedModel, weight: WeightScheme) -> ImportedModel:
    """The same model with every matrix replaced by what its quantized form stands for (both orientations)."""
    for value in model.graph.graph.initializers.values():
        array = np.asarray(value.const_value.numpy())  # type: ignore[union-attr]
        if array.ndim != 2 or value.name in ("cos", "sin"):
            continue
        rows = array if value.name == "table" else array.T  # a table is [rows, width]; MatMul factors are [in, out]
        exact = round_to_nearest(np.ascontiguousarray(rows), weight).dequantize(weight)
        value.const_value = ir.tensor(exact if value.name == "table" else np.ascontiguousarray(exact.T))
    return model


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImportedModel, Session]:
    model = decoder(Shape(bias=True, window=20))
    return model, _compile(model, tmp_path_factory.mktemp("f32") / "a", scheme="f32")


def test_unquantized_logits_equal_the_interpreter(f32: tuple[ImportedModel, Session]) -> None:
    model, session = f32
    ids = _ids(model)
    np.testing.assert_allclose(session.logits(ids), Interpreter(model.graph).logits(ids), atol=F32)


def test_prefill_then_decode_equals_one_shot(f32: tuple[ImportedModel, Session]) -> None:
    model, session = f32
    ids = _ids(model)
    expected = session.logits(ids)
    session.reset()
    np.testing.assert_allclose(session.prefill(ids[:30]), expected[29], atol=F32)
    for position in range(30, 45):
        np.testing.assert_allclose(session.decode(int(ids[position])), expected[position], atol=F32)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_an_artifact_runs_on_more_processors_than_it_was_compiled_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(Shape(window=20))
    single = replace(Target.parse("native"), cores=1)
    with monkeypatch.context() as patch:
        patch.setattr(Target, "parse", lambda _name: single)
        pipeline.compile(model, tmp_path / "a", context=64, chunk=16, scheme="u4g32a8")
    assert Artifact.open(tmp_path / "a").manifest.target.details["cores"] == 1
    ids = _ids(model)
    found = []
    for threads in (1, 2):
        session = load(tmp_path / "a", threads=threads)
        session.prefill(ids[:20])
        found.append([session.decode(int(token)) for token in ids[20:]])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-3)


def test_more_threads_than_an_artifact_has_memory_for_are_refused(f32: tuple[ImportedModel, Session]) -> None:
    session = f32[1]
    before, step = session.threads, session.manifest.interface.step
    assert step is not None and step.threads >= 64
    with pytest.raises(UsageError, match=f"at most {step.threads}"):
        session.module.use_threads(step.threads + 1)
    assert session.threads == before


@pytest.mark.parametrize("cut", [1, 7, 16, 17, 31])
def test_split_prefill_equals_whole_prefill(f32: tuple[ImportedModel, Session], cut: int) -> None:
    model, session = f32
    ids = _ids(model)
    session.reset()
    whole = session.prefill(ids)
    session.reset()
    session.prefill(ids[:cut])
    np.testing.assert_allclose(session.prefill(ids[cut:]), whole, atol=F32)


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 32, 63, 64])
def test_any_prompt_length_up_to_the_context(f32: tuple[ImportedModel, Session], length: int) -> None:
    model, session = f32
    ids = _ids(model, length)
    session.reset()
    expected = Interpreter(model.graph).logits(ids)[-1]
    np.testing.assert_allclose(session.prefill(ids), expected, atol=F32)


def test_greedy_decoding_follows_the_interpreter(f32: tuple[ImportedModel, Session]) -> None:
    model, session = f32
    prompt = _ids(model, 8)
    session.reset()
    token = int(session.prefill(prompt).argmax())
    produced = [token]
    for _ in range(39):
        token = int(session.decode(token).argmax())
        produced.append(token)
    ids = np.concatenate([prompt, produced])
    logits = Interpreter(model.graph).logits(ids)
    assert produced == [int(row.argmax()) for row in logits[7:-1]]


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        ("u4g32a16", Shape()),
        ("u3g64za16", Shape(layers=1, width=192, heads=6, hidden=320, tied=False)),
        ("u2rowa16", Shape(layers=1)),
    ],
    ids=str,
)
def test_activations_of_two_terms_equal_dequantized_weights(tmp_path: Path, scheme: str, shape: Shape) -> None:
    session = _compile(decoder(shape), tmp_path / "a", scheme=scheme, kv_bits=32)
    exact = _dequantized(decoder(shape), LinearScheme.parse(scheme).weight)
    _assert_as_near_as_two_terms(session.logits(_ids(exact)), Interpreter(exact.graph).logits(_ids(exact)))


def _assert_as_near_as_two_terms(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> None:
    """a16 rounds an activation by 2**-15 of its group's largest; these models do so a dozen times on the way."""
    np.testing.assert_allclose(found, exact, atol=16 * 2**-15 * float(np.abs(exact).max()))


@pytest.mark.parametrize("scheme", ["u8g32a8", "u5g32za8"])
def test_int8_activations_stay_close_to_dequantized_weights(tmp_path: Path, scheme: str) -> None:
    session = _compile(decoder(), tmp_path / "a", scheme=scheme)
    exact = _dequantized(decoder(), LinearScheme.parse(scheme).weight)
    ids = _ids(exact)
    expected = Interpreter(exact.graph).logits(ids)
    error = session.logits(ids) - expected
    assert np.sqrt(np.mean(error**2)) < INT8_ACTIVATIONS * expected.std()


def test_a_calibrated_quantizer_changes_codes_and_no_bytes(tmp_path: Path) -> None:
    from tests.compiling.test_calibration import word_tokenizer

    quantizer: QuantizerName = "auto"
    shape, scheme = Shape(layers=1, width=128, heads=4, hidden=192), "u3g32a16"
    text = tmp_path / "text"
    text.write_text(" ".join(f"w{i}" for i in np.random.default_rng(3).integers(0, 101, 1000)))
    model = replace(decoder(shape), tokenizer_json=word_tokenizer())
    options = make_options(quantizer=quantizer, calibration=text, calibration_cache=tmp_path / "cache")
    with calibrated(model, options, lambda _: None) as moments:
        assert moments is not None
        exact = decoder(shape)
        for value in exact.graph.graph.initializers.values():
            array = np.asarray(value.const_value.numpy())  # type: ignore[union-attr]
            if array.ndim == 2 and value.name not in ("cos", "sin"):
                rows = array if value.name == "table" else np.ascontiguousarray(array.T)
                moment = moments.of(value.name if value.name == "table" else f"{value.name}.T")
                weight = LinearScheme.parse(scheme).weight
                rows = quantize(quantizer, rows, weight, moment).dequantize(weight)
                value.const_value = ir.tensor(rows if value.name == "table" else np.ascontiguousarray(rows.T))
    session = _compile(
        model,
        tmp_path / "a",
        scheme=scheme,
        kv_bits=32,
        quantizer=quantizer,
        calibration=text,
        calibration_cache=tmp_path / "cache",
    )
    ids = _ids(model)
    _assert_as_near_as_two_terms(session.logits(ids), Interpreter(exact.graph).logits(ids))
    assert session.manifest.digests == {"calibration": moments.digest}
    assert f"Quantized by {quantizer}." in (tmp_path / "a" / "report.md").read_text()
    nearest = _compile(decoder(shape), tmp_path / "b", scheme=scheme, kv_bits=32)
    assert nearest.manifest.run_bytes == session.manifest.run_bytes
    truth = Interpreter(decoder(shape).graph).logits(ids)
    errors = [np.sqrt(np.mean((s.logits(ids) - truth) ** 2)) for s in (session, nearest)]
    assert errors[0] < errors[1]


def test_an_edited_plan_with_a_scheme_per_site_is_compiled(tmp_path: Path) -> None:
    model = decoder(Shape(layers=1))
    artifact = pipeline.compile(model, tmp_path / "a", context=64, scheme="u8g32a8")
    text = (artifact.folder / "plan.json").read_text()
    edited = text.replace('"layer.0.k": "u8g32a8"', '"layer.0.k": "u6g32a16"').replace(
        '"layer.0.mlp.0": "u8g32a8"', '"layer.0.mlp.0": "f16"'
    )
    assert edited != text
    plan = tmp_path / "plan.json"
    plan.write_text(edited)
    session = _compile(model, tmp_path / "b", plan=plan)
    assert Plan.from_json((tmp_path / "b" / "plan.json").read_text()) == Plan.from_json(edited)
    ids = _ids(model)
    close = session.logits(ids) - Interpreter(model.graph).logits(ids)
    assert np.sqrt(np.mean(close**2)) < INT8_ACTIVATIONS * 30  # spread of the logits is about 30


def test_two_compiles_give_the_same_bytes(tmp_path: Path) -> None:
    model = decoder(Shape(layers=1))
    for name in "ab":
        pipeline.compile(model, tmp_path / name, context=64)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"model.so", "weights.safetensors", "plan.json", "manifest.json", "report.md"} <= set(names)
    for file in names:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_weights_on_disk_are_what_the_schemes_say(tmp_path: Path) -> None:
    # Every matrix, q, k and v together included, fills whole tiles of 64 rows.
    shape = Shape(layers=1, vocab=128, width=128, heads=4, kv_heads=2, hidden=192)
    model = decoder(shape)
    artifact = pipeline.compile(model, tmp_path / "a", context=64, scheme="u3g32a8")
    matrices = [(128, 128), (128, 128), (64, 128), (64, 128), (128, 128), (192, 128), (192, 128), (128, 192)]
    packed = sum(WeightScheme("uniform", 3, 32).storage_bytes(*shape) for shape in matrices)
    norms, tables = 3 * 128 * 4, 2 * 64 * 16 * 4  # rotary tables of the 64 positions the cache has
    header = int.from_bytes((artifact.folder / "weights.safetensors").read_bytes()[:8], "little")
    assert artifact.manifest.run_bytes == 8 + header + packed + norms + tables


def test_dump_ir_shows_every_phase_and_the_schemes(tmp_path: Path) -> None:
    pipeline.compile(decoder(Shape(layers=1)), tmp_path / "a", context=64, dump_ir=tmp_path / "ir")
    names = [path.name for path in sorted((tmp_path / "ir").iterdir())]
    assert names[0] == "00-import.py" and "03-annotate.py" in names
    annotated = (tmp_path / "ir" / "03-annotate.py").read_text()
    assert '"scheme": "u4g32a8"' in annotated and '"k_scheme": "k16"' in annotated


@pytest.mark.parametrize("name", ["file", "file/ir"])
def test_a_place_that_cannot_hold_the_ir_is_refused_before_reading(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="the IR cannot be written"):
        pipeline.compile("no-such-model", tmp_path / "a", dump_ir=tmp_path / name)


def test_a_full_disk_while_generating_code_leaves_nothing(tmp_path: Path) -> None:
    """LLVM would end the process, so the room is taken beforehand. The limit on file sizes stands in for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        with pytest.raises(UsageError, match="there is no room to generate code: File too large"):
            pipeline.compile(decoder(Shape(layers=1)), tmp_path / "a", context=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_linker_that_fails_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cc", "gcc", "g++", "c++", "clang", "clang++"):
        (tools / name).write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device'\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="the library could not be linked") as caught:
        pipeline.compile(decoder(Shape(layers=1)), tmp_path / "a", context=64)
    assert "No space left on device" in str(caught.value.limit)
    assert list(tmp_path.iterdir()) == [tools]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_inside_tvm_stays_one_and_leaves_nothing(tmp_path: Path, interruption: BaseException) -> None:
    import tvm_ffi

    def interrupted(phase: str) -> None:
        if phase == "generate code":
            tvm_ffi.convert(interrupt)()

    def interrupt() -> None:
        raise interruption

    with pytest.raises(type(interruption)):
        pipeline.compile(decoder(Shape(layers=1)), tmp_path / "a", context=64, progress=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_an_illegal_group_names_site_and_reason(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        pipeline.compile(decoder(Shape(layers=1)), tmp_path / "a", scheme="u4g64a8", context=64)
    text = str(caught.value)
    assert "layer.0.q [96 x 96] u4g64a8: groups of 64 do not divide 96 inputs" in text and "remedy" in text
    assert not (tmp_path / "a").exists()


def test_a_context_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a context of 97 tokens"):
        pipeline.compile(decoder(), tmp_path / "a", context=97)


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    model = decoder(Shape(layers=1))
    target = Target.parse("native")
    plan, _ = pipeline.plan_and_program(model, Options(context=64), target, lambda _: None)
    other = Options(plan=replace(plan, model="0" * 64), context=64)
    with pytest.raises(InputError, match="made for another model"):
        pipeline.compile_model(model, tmp_path / "a", other)


def test_an_empty_scheme_is_not_taken_for_the_default() -> None:
    with pytest.raises(UsageError, match="'' is not a scheme"):
        make_options(scheme="")


def test_a_plan_together_with_schemes_is_refused() -> None:
    with pytest.raises(UsageError, match="a plan and schemes were given"):
        make_options(plan="plan.json", scheme="u4g32a8")


@pytest.mark.parametrize("number", ["0", "-1", "100000"])
def test_absurd_chunks_are_refused(number: str) -> None:
    with pytest.raises(UsageError, match="prefill chunk"):
        make_options(chunk=int(number))
