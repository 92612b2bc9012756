from __future__ import annotations

from pathlib import Path

import pytest

from uml.supervisor import installer, wheels
from uml.supervisor.installer import InstallError
from uml.supervisor.wheels import build_fraction, build_wheel, wheel_folder

REQUIREMENT = "nothing-cpp==1.0"


@pytest.mark.parametrize(
    ("line", "fraction"),
    [
        ("[12/340] Building CXX object a.o", 12 / 340),
        ("  [340/340] Linking", 1.0),
        ("[ 50%] Building CXX object", 0.5),
        ("[100%] Built target llama", 1.0),
        ("  *** Configuring CMake...", None),
        ("[0/0] nothing", None),
        ("see [1/2] there", None),
        ("", None),
    ],
)
def test_fraction_is_read_from_the_builders_lines(line: str, fraction: float | None) -> None:
    assert build_fraction(line) == fraction


def test_folder_depends_on_version_flags_and_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = wheel_folder(tmp_path, REQUIREMENT, ("-DA=ON",))
    assert first == wheel_folder(tmp_path, REQUIREMENT, ("-DA=ON",))
    others = {
        wheel_folder(tmp_path, REQUIREMENT, ("-DA=OFF",)),
        wheel_folder(tmp_path, "nothing-cpp==1.1", ("-DA=ON",)),
    }
    monkeypatch.setattr(wheels.sysconfig, "get_platform", lambda: "linux-other")
    others.add(wheel_folder(tmp_path, REQUIREMENT, ("-DA=ON",)))
    assert len({first, *others}) == 4


class Pip:
    """Stands in for `installer.run`: writes a wheel where pip would, or fails."""

    def __init__(self, error: str = "", wheel: bool = True) -> None:
        self.error, self.wheel = error, wheel
        self.runs: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, command, log, env=None) -> None:
        self.runs.append((list(command), dict(env or {})))
        log("[1/2] Building CXX object")
        if self.error:
            raise InstallError(self.error)
        if self.wheel:
            folder = Path(command[command.index("--wheel-dir") + 1])
            (folder / "nothing_cpp-1.0-py3-none-any.whl").write_bytes(b"wheel")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    stand_in = Pip()
    monkeypatch.setattr(installer, "run", stand_in)
    monkeypatch.setattr(wheels, "compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(wheels, "machine_args", lambda: ("-DGGML_NATIVE=OFF", "-DGGML_AVX=ON"))
    return stand_in


def build(cache: Path, told: list[tuple[str, float | None]] | None = None) -> Path:
    def progress(stage: str, fraction: float | None) -> None:
        if told is not None:
            told.append((stage, fraction))

    return build_wheel(cache, REQUIREMENT, cache / "venv", progress)


def test_wheel_is_built_once_and_kept(tmp_path: Path, pip: Pip) -> None:
    told: list[tuple[str, float | None]] = []
    first = build(tmp_path, told)
    assert first.exists() and build(tmp_path) == first and len(pip.runs) == 1
    assert 0.5 in [fraction for _, fraction in told]
    assert "Building CXX" in (first.parent / "build.log").read_text()
    assert wheels.is_cached(tmp_path, REQUIREMENT)


def test_build_passes_flags_and_shuns_pips_own_wheel_cache(tmp_path: Path, pip: Pip) -> None:
    build(tmp_path)
    ((command, environ),) = pip.runs
    assert environ["CMAKE_ARGS"] == "-DGGML_NATIVE=OFF -DGGML_AVX=ON"
    assert int(environ["CMAKE_BUILD_PARALLEL_LEVEL"]) >= 1
    assert "--no-cache-dir" in command and "--no-deps" in command


def test_failed_build_leaves_its_log_and_no_wheel(tmp_path: Path, pip: Pip) -> None:
    pip.error = "cc1plus: out of memory"
    with pytest.raises(InstallError, match=r"out of memory(?s:.*)failed\.log"):
        build(tmp_path)
    assert not wheels.is_cached(tmp_path, REQUIREMENT)
    pip.error = ""
    assert build(tmp_path).exists()


def test_half_built_leftover_is_not_taken_for_a_wheel(tmp_path: Path, pip: Pip) -> None:
    folder = wheel_folder(tmp_path, REQUIREMENT, wheels.machine_args())
    half = folder.with_name(folder.name + ".new")
    half.mkdir(parents=True)
    (half / "old.whl").write_bytes(b"half")
    assert build(tmp_path).name == "nothing_cpp-1.0-py3-none-any.whl"


def test_build_without_result_is_an_error(tmp_path: Path, pip: Pip) -> None:
    pip.wheel = False
    with pytest.raises(InstallError, match="no wheel"):
        build(tmp_path)


def test_missing_compiler_is_one_clear_line(
    tmp_path: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "compiler", lambda: None)
    with pytest.raises(InstallError) as caught:
        build(tmp_path)
    assert str(caught.value) == (
        "a C++ compiler is needed once to build llama.cpp: apt install g++"
    )
    assert not pip.runs
