from __future__ import annotations

import pytest

from uml.supervisor.build_flags import cmake_args, instruction_sets, read_cpu_flags

BASE = "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt"
AVX2 = f"{BASE} avx f16c avx2 fma bmi1 bmi2"
AVX512 = f"{AVX2} avx512f avx512cd avx512vl avx512dq avx512bw"
ZEN4 = f"{AVX512} avx512_bf16 avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg"
SAPPHIRE_RAPIDS = f"{ZEN4} avx_vnni avx512_fp16 amx_tile amx_int8 amx_bf16"

ALL = ["SSE42", "AVX", "F16C", "AVX2", "FMA", "BMI2", "AVX512"]
EXTENSIONS = ["AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"]


@pytest.mark.parametrize(
    ("flags", "sets"),
    [
        pytest.param(ZEN4, ALL + EXTENSIONS, id="Zen 4"),
        pytest.param(SAPPHIRE_RAPIDS, ALL + EXTENSIONS, id="Sapphire Rapids"),
        pytest.param(AVX512, ALL, id="Skylake-X"),
        pytest.param(AVX2, ALL[:-1], id="Haswell, Zen 2"),
        pytest.param(f"{BASE} avx", ["SSE42", "AVX"], id="Sandy Bridge"),
        pytest.param(BASE, ["SSE42"], id="Westmere"),
        pytest.param("fpu sse sse2", [], id="Core 2"),
        pytest.param(f"{AVX2} avx512f avx512cd avx512_vnni", ALL[:-1], id="half an AVX512"),
    ],
)
def test_flags_follow_the_processor(flags: str, sets: list[str]) -> None:
    args = cmake_args(flags.split(), "x86_64")
    assert args[0] == "-DGGML_NATIVE=OFF"
    assert instruction_sets(args) == sets


@pytest.mark.parametrize("flags", [SAPPHIRE_RAPIDS, "amx_tile amx_int8 amx_bf16"])
def test_flags_never_name_amx(flags: str) -> None:
    assert not any("AMX" in arg for arg in cmake_args(flags.split(), "x86_64", cuda=True))


def test_flags_say_off_for_what_is_not_there() -> None:
    """CMake's own default for AVX2 is on."""
    args = cmake_args(BASE.split(), "x86_64")
    assert "-DGGML_AVX2=OFF" in args and "-DGGML_FMA=OFF" in args and "-DGGML_AVX512=OFF" in args


def test_flags_leave_other_machines_to_the_compiler() -> None:
    assert cmake_args({"asimd", "sve"}, "aarch64") == ()
    assert cmake_args((), "arm64", cuda=True) == ("-DGGML_CUDA=ON",)


def test_flags_do_not_depend_on_the_order_of_cpuinfo() -> None:
    assert cmake_args(ZEN4.split(), "x86_64") == cmake_args(ZEN4.split()[::-1], "x86_64")


def test_cpuinfo_reads_the_first_processor() -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx2\nbugs\t: x\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert read_cpu_flags(text) == {"fpu", "avx2"}
    assert read_cpu_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    assert read_cpu_flags("") == frozenset()
