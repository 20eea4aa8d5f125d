"""This machine's features in LLVM's names, checked against LLVM."""

from __future__ import annotations

from pathlib import Path

from bitwright.runtime.host import Host, detect_host, features_from_cpuinfo, physical_cores


def test_this_machine_has_every_feature_that_llvm_finds_and_code_may_require() -> None:
    from bitwright.target import Target

    target = Target.parse("native")
    assert detect_host().lacks(target.required_features) == ()
    assert target.triple.split("-")[0] == detect_host().arch


def test_features_llvm_says_this_machine_lacks_are_lacking() -> None:
    import tvm  # noqa: F401 - registers LLVM's functions
    import tvm_ffi

    from bitwright.target import NAMED

    found = tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    lacking = {str(name) for name, there in found.items() if not there}
    for _, features in NAMED.values():
        assert set(detect_host().lacks(features)) == set(features) & lacking


def test_a_feature_counts_only_if_every_processor_has_it() -> None:
    text = "processor: 0\nflags\t\t: pni sse4_2 avx512_vnni\nprocessor: 1\nflags\t\t: pni sse4_2 abm\n"
    assert features_from_cpuinfo(text) == {"sse3", "sse4.2", "crc32"}


def test_arm_names_are_llvms() -> None:
    assert features_from_cpuinfo("Features\t: fp asimd asimddp i8mm") == {"fp", "neon", "dotprod", "i8mm"}


def test_text_without_flags_has_no_features() -> None:
    assert features_from_cpuinfo("model name: x\n") == frozenset()


def test_lacking_features_are_sorted() -> None:
    assert Host("x86_64", frozenset({"b"})).lacks(["c", "b", "a"]) == ("a", "c")


def test_second_threads_of_a_core_do_not_count(tmp_path: Path) -> None:
    import os

    available = sorted(os.sched_getaffinity(0))
    for cpu in available:
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-63\n")
    assert physical_cores(tmp_path) == 1
    assert physical_cores(tmp_path / "nothing") == len(available)
