"""Targets say exactly which instructions code may use, and TVM is told no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitwright.errors import UsageError
from bitwright.target import NAMED, Target, cache_sizes


def _allows(target: Target, feature: str) -> bool:
    from tvm.target import codegen

    return bool(codegen.target_has_features(feature, target.tvm()))


def test_native_allows_what_the_machine_has_and_nothing_else() -> None:
    target = Target.parse("native")
    for feature in ("avx2", "fma", "avx512f", "avx512vnni", "avxvnni"):
        assert _allows(target, feature) == (feature in target.features), feature


def test_features_hidden_by_a_hypervisor_are_disabled() -> None:
    target = Target.parse("native")
    assert not target.disabled & target.features
    assert not any(_allows(target, feature) for feature in target.disabled)


def test_machines_with_avx512_are_scheduled_for_the_level_and_no_others() -> None:
    native = Target.parse("native")
    level = replace(native, cpu="znver5", features=frozenset((*NAMED["avx512vnni"][1], "avx512bf16")))
    assert level.scheduled_for == "x86-64-v4"
    assert replace(level, features=frozenset(NAMED["avx2"][1])).scheduled_for == "znver5"
    assert Target.parse("generic").scheduled_for == ""
    assert native.tvm().attrs["mcpu"] == native.scheduled_for


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_targets_use_their_features_only(name: str) -> None:
    if not Target.parse("native").triple.startswith("x86_64") and name != "generic":
        pytest.skip("named targets are x86 feature levels")
    target = Target.parse(name)
    assert _allows(target, "avx512vnni") == name.startswith("avx512vnni")
    assert _allows(target, "avx512vbmi") == (name == "avx512vnni")
    assert _allows(target, "avxvnni") == (name == "avxvnni")
    assert _allows(target, "avx2") == (name != "generic")


def test_kernels_of_named_targets_are_tuned_for_the_machine_at_hand() -> None:
    native = Target.parse("native")
    assert native.tune == native.cpu
    for name in NAMED:
        if native.triple.startswith("x86_64") or name == "generic":
            assert Target.parse(name).tune == native.cpu
    assert replace(native, tune="another").fingerprint != native.fingerprint


def test_fingerprints_tell_targets_apart_and_are_stable() -> None:
    targets = [Target.parse(name) for name in ("native", *NAMED)]
    assert len({t.fingerprint for t in targets}) == len(targets)
    assert Target.parse("avx2").fingerprint == Target.parse("avx2").fingerprint


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse("pentium")
    assert "native" in str(caught.value) and "avx2" in str(caught.value)


def test_cache_sizes_are_read_from_sysfs(tmp_path: Path) -> None:
    for index, (kind, level, size) in enumerate([("Data", 1, "32K"), ("Instruction", 1, "32K"), ("Unified", 3, "32M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", str(level)), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert cache_sizes(tmp_path) == {"L1d": 32 << 10, "L3": 32 << 20}
    assert cache_sizes(tmp_path / "nowhere") == {}
