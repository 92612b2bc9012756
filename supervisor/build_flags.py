"""Which CMake arguments a llama.cpp for this machine is built with. Pure.

`GGML_NATIVE=ON` is a trap: on a Xeon with AMX, gcc 12.2 emits tile instructions that die with
SIGILL at the first decode, and machines that advertise AMX need not execute it. So native is
off, every instruction set the processor reports is named, and AMX never is.
Source: the GGML_* options in llama.cpp's ggml/CMakeLists.txt; flag names of /proc/cpuinfo.
"""

from __future__ import annotations

from collections.abc import Collection

_X86 = ("x86_64", "amd64", "i686")

#: Option -> the processor flags it needs, all of them. Named ON or OFF explicitly.
_SETS: dict[str, tuple[str, ...]] = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_F16C": ("f16c", "avx"),
    "GGML_AVX2": ("avx2",),
    "GGML_FMA": ("fma", "avx"),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
}
#: Extensions of AVX512, worth naming only on top of it.
_ON_AVX512: dict[str, tuple[str, ...]] = {
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
}


def cmake_args(flags: Collection[str], machine: str, *, cuda: bool = False) -> tuple[str, ...]:
    """Arguments in a fixed order, so that they can be part of a cache's key.

    flags: of one processor, as /proc/cpuinfo names them. machine: `platform.machine()`; other
    than x86 the compiler's own baseline is right. cuda: build the CUDA device too.
    """
    args: list[str] = []
    if machine.lower() in _X86:
        have = set(flags)
        chosen = {option: have.issuperset(need) for option, need in _SETS.items()}
        for option, need in _ON_AVX512.items():
            chosen[option] = chosen["GGML_AVX512"] and have.issuperset(need)
        args.append("-DGGML_NATIVE=OFF")
        args += [f"-D{option}={'ON' if on else 'OFF'}" for option, on in chosen.items()]
    if cuda:
        args.append("-DGGML_CUDA=ON")
    return tuple(args)


def read_cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Flags of the first processor in the text of /proc/cpuinfo; empty when there are none."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def instruction_sets(args: Collection[str]) -> list[str]:
    """The sets that are switched on, for people: ["SSE42", "AVX", ...]."""
    on = (a.removeprefix("-DGGML_").removesuffix("=ON") for a in args if a.endswith("=ON"))
    return [name for name in on if name != "CUDA"]
