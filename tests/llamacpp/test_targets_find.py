"""Which targets llama.cpp has here, and what is said of those that it has not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from collab_llamacpp.native.libraries import OTHER_FOLDER, installed_folder
from collab_llamacpp.targets.builds import LIBRARIES, Build, backend_libraries
from collab_llamacpp.targets.llamacpp_targets import LlamaCppTargets

from collab_plugin.engines.program_settings import settings_file
from collab_plugin.engines.target import TargetInfo
from collab_plugin.errors import CollabError
from collab_plugin.plugins.manager import build_registry, plugin_manager


def find() -> dict[str, TargetInfo]:
    return {info.name: info for info in LlamaCppTargets().find()}


@pytest.fixture
def linked(tmp_path: Path, llama_libraries: Path) -> Path:
    """A folder of libraries that a test may add to."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    for path in llama_libraries.iterdir():
        if path.name.startswith(("libllama", "libggml.", "libggml-base", "libggml-cpu-")):
            shutil.copy2(path, folder / path.name)
    return folder


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing named."""
    for variable in (LIBRARIES.variable, OTHER_FOLDER):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_the_plugin_registers_them() -> None:
    assert isinstance(build_registry(plugin_manager()).targets["llamacpp"], LlamaCppTargets)


def test_the_installed_build_on_the_cpu() -> None:
    found = find()
    for name in ("llamacpp:cpu", "llamacpp:cpu-norepack"):
        info = found[name]
        assert info.absent is None and info.device is not None
        assert info.device.kind == "cpu" and info.device.unified_memory
        assert info.build.startswith("llama-cpp-python 0.3.36, ggml ")
        assert "REPACK" in info.versions["built for"].split()
    if Path("/proc/cpuinfo").exists():
        assert info.device.name in Path("/proc/cpuinfo").read_text()
        assert info.device.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux: elsewhere the wheel may have Metal or BLAS")
def test_absent_hardware_has_a_reason() -> None:
    found = find()
    reasons = {name.removeprefix("llamacpp:"): info.absent for name, info in found.items() if info.absent}
    without = {
        "blas": "BLAS",
        "cuda:0": "CUDA",
        "rocm:0": "ROCm",
        "sycl:0": "SYCL",
        "vulkan:0": "Vulkan",
    }
    assert reasons == {
        "metal:0": "no Metal: this is not macOS",
        **{name: f"this llama.cpp was built without {what}" for name, what in without.items()},
    }
    assert all(found[f"llamacpp:{name}"].device is None for name in reasons)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collab_llamacpp.native.libraries.find_spec", lambda name: None)
    found = find()
    assert list(found) == ["llamacpp:cpu"]
    assert found["llamacpp:cpu"].absent == ("llama-cpp-python is not installed: pip install 'collab-plugin[llamacpp]'")


def test_a_folder_without_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LIBRARIES.variable, str(tmp_path))
    with pytest.raises(CollabError, match=f"COLLAB_LLAMA_LIBRARIES names {tmp_path}, which holds no libllama"):
        find()


def test_a_named_folder_comes_before_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARIES.variable, str(installed_folder()))
    provider = LlamaCppTargets()
    info = next(info for info in provider.find() if info.name == "llamacpp:cpu")
    assert info.build.endswith(f" in {installed_folder()}")
    assert provider.environment("llamacpp:cpu")["LLAMA_CPP_LIB_PATH"] == str(installed_folder())


def test_folders_of_the_settings(tmp_path: Path, linked: Path) -> None:
    settings = settings_file()
    assert settings.is_relative_to(tmp_path)
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[programs]\nllama_libraries = '{linked}'\n")
    found = [info for info in find().values() if info.name.startswith("llamacpp:cpu-") and not info.absent]
    assert {info.build.rpartition(" in ")[2] for info in found if " in " in info.build} == {str(linked)}


def test_the_folder_that_llama_cpp_itself_is_told(monkeypatch: pytest.MonkeyPatch, linked: Path) -> None:
    monkeypatch.setenv(OTHER_FOLDER, str(linked))
    present = {name: info for name, info in find().items() if not info.absent}
    assert present and "llamacpp:cpu" not in present
    assert all(info.build.endswith(f" in {linked}") for info in present.values())


def test_the_environment_that_a_folder_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    monkeypatch.setenv("OTHER", "before")
    (tmp_path / "environment").write_text("LD_LIBRARY_PATH=/a:/b\nOTHER=x=y\n")
    assert Build(tmp_path, False).environment() == {
        "LLAMA_CPP_LIB_PATH": str(tmp_path),
        "LD_LIBRARY_PATH": f"/a:/b{os.pathsep}/before",
        "OTHER": "x=y",
    }
    (tmp_path / "environment").write_text("nonsense\n")
    with pytest.raises(CollabError, match="'nonsense' is no NAME=VALUE"):
        Build(tmp_path, False).environment()


# Instructions that a code path must be built with, and must not.
CODE_PATHS = {"x64": ("", "SSE3"), "sse42": ("SSSE3", "AVX"), "haswell": ("AVX2", "AVX512")}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 code paths")
@pytest.mark.parametrize("code_path", CODE_PATHS)
def test_code_paths(code_path: str, llama_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARIES.variable, str(llama_libraries))
    has, lacks = CODE_PATHS[code_path]
    info = find()[f"llamacpp:cpu-{code_path}"]
    if info.absent:
        pytest.skip(info.absent)
    built_for = info.versions["built for"].split()
    assert (not has or has in built_for) and lacks not in built_for
    assert info.build.endswith(f" in {llama_libraries}")


def test_vulkan_s_software_driver_is_told_as_such(llama_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "vulkan" not in backend_libraries(llama_libraries):
        pytest.skip("no Vulkan: its packages could not be had when the libraries were built")
    monkeypatch.setenv(LIBRARIES.variable, str(llama_libraries))
    provider = LlamaCppTargets()
    info = next(info for info in provider.find() if info.name == "llamacpp:vulkan:0")
    assert info.absent is None and info.device is not None
    assert info.device.name.startswith("llvmpipe") and info.device.kind == "cpu"
    assert info.device.driver == "llvmpipe, software" and info.device.unified_memory
    assert provider.environment(info.name)["GGML_VK_VISIBLE_DEVICES"] == "0"


def test_a_driver_that_aborts_is_an_absent_target(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of our own making, which aborts when it is asked for devices."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = linked / "driver.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n"
        'void *ggml_backend_init(void) { fputs("driver: no firmware\\n", stderr); abort(); }\n'
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", linked / "libggml-cuda.so", source], check=True, timeout=60)
    (linked / "libggml-sycl.so").write_text("no library")
    monkeypatch.setenv(LIBRARIES.variable, str(linked))
    found = find()
    assert found["llamacpp:cuda:0"].absent == (
        f"{linked}/libggml-cuda.so was ended by SIGABRT while it listed its devices: driver: no firmware"
    )
    reason = found["llamacpp:sycl:0"].absent or ""
    assert reason.startswith("libggml-sycl.so does not load: ") and reason.endswith("file too short")
    assert found["llamacpp:cpu"].absent is None
