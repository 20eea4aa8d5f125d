"""Compiling with tuning records: other code, the same numbers, and a manifest that says which records."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitwright import pipeline
from bitwright.autotune.records import RecordFile
from bitwright.autotune.workload import Workload
from bitwright.codegen.isa import select_isa
from bitwright.runtime.session import load
from bitwright.target import Target
from tests.canonical_model import Shape, decoder

from .synthetic import record

KNOBS = {"prefetch": 1024, "chain": 2}


def test_records_change_the_code_and_not_the_result(tmp_path: Path) -> None:
    target = Target.parse("native")
    model = decoder(Shape(layers=1, vocab=128, width=128, heads=4, kv_heads=2, hidden=192))
    with RecordFile(tmp_path / "r.jsonl", target.fingerprint) as file:
        for shape in ((256, 128), (384, 128), (128, 192), (128, 128)):
            work = Workload("linear", shape, "u4g32a8", 1, target.cores, select_isa(target.features).name)
            file.append(record(work, KNOBS, target.fingerprint, ratio=0.7))
    plain = pipeline.compile(model, tmp_path / "plain", context=64)
    tuned = pipeline.compile(model, tmp_path / "tuned", context=64, records=tmp_path / "r.jsonl")
    assert "tuning" not in plain.manifest.digests
    assert len(tuned.manifest.digests["tuning"]) == 64
    files = [folder.folder / "model.so" for folder in (plain, tuned)]
    assert files[0].read_bytes() != files[1].read_bytes()
    ids = np.random.default_rng(7).integers(0, model.vocab, 20).tolist()
    logits = [load(folder.folder).logits(ids) for folder in (plain, tuned)]
    np.testing.assert_array_equal(*logits)
