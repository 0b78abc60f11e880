"""Builds a CUDA runtime without a GPU, for a process to preload (Linux, g++, torch's CUDA build).

`fake.cpp` is a runtime whose device memory is the host's and whose kernels are logged and do
nothing. PyTorch's dispatcher, allocator, autograd, generators, GradScaler and CUDAGraph above it
are the real ones. What else torch's libraries want of CUDA's becomes a stub that returns 0.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PREFIXES = ("cuda", "__cuda", "cublas", "cudnn", "cufft", "cusparse", "cusolver")


def missing() -> str:
    """What this machine lacks for it; empty if nothing."""
    if not sys.platform.startswith("linux"):
        return "Linux"
    if not (shutil.which("g++") and shutil.which("nm")):
        return "g++ and nm"
    if not any((folder / "cuda_runtime_api.h").is_file() for folder in headers()):
        return "the CUDA build of torch, with CUDA's headers"
    return ""


def headers() -> list[Path]:
    """Where CUDA's headers may be: pip's packages of CUDA, and Triton."""
    site = Path(sysconfig.get_paths()["purelib"])
    return [*site.glob("nvidia/cu*/include"), site / "triton/backends/nvidia/include"]


def symbols(library: Path, *options: str) -> Iterator[str]:
    """Names in a library's table of symbols."""
    listing = subprocess.run(["nm", *options, library], capture_output=True, text=True, check=False)
    for line in listing.stdout.splitlines():
        yield line.split()[-1].split("@")[0]


def is_cuda(name: str) -> bool:
    """Whether a symbol is one of CUDA's libraries: `cudaMalloc`, `cuCtxCreate` …"""
    return name.startswith(PREFIXES) or (name[:2] == "cu" and name[2:3].isupper())


def build(folder: Path) -> Path:
    """The runtime for this torch, built into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    library, objects = folder / "libfakecuda.so", [folder / "fake.o", folder / "rest.o"]
    includes = [f"-I{path}" for path in headers()]
    compile_cpp = ["g++", "-O1", "-w", "-fPIC", "-std=c++17", *includes, "-c", HERE / "fake.cpp"]
    subprocess.run([*compile_cpp, "-o", objects[0]], check=True)
    spec = importlib.util.find_spec("torch")
    assert spec
    assert spec.submodule_search_locations
    libraries = Path(spec.submodule_search_locations[0]).glob("lib/*.so")
    wanted = {name for so in libraries for name in symbols(so, "-D", "--undefined-only")}
    stubs = {name for name in wanted if is_cuda(name)} - set(symbols(objects[0], "--defined-only"))
    stubs = {name for name in stubs if not name.startswith(("cuFile", "cusparseLt"))}
    lines = [f'int {name}(void){{fake_note("stub {name}");return 0;}}' for name in sorted(stubs)]
    rest = folder / "rest.c"
    rest.write_text("\n".join(["void fake_note(const char*);", *lines, ""]))
    subprocess.run(["gcc", "-O1", "-fPIC", "-w", "-c", rest, "-o", objects[1]], check=True)
    subprocess.run(["g++", "-shared", "-o", library, *objects], check=True)
    (folder / "libcuda.so.1").symlink_to(library.name)
    empty = folder / "curand.c"  # torch before 2.15 links it
    empty.write_text("int curand_stub;\n")
    name = "libcurand.so.10"
    link = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, empty]
    subprocess.run(link, check=True)
    return library


def environment(library: Path, home: Path) -> dict[str, str]:
    """The variables of a process on this runtime."""
    return {
        **os.environ,
        "FAKE_CUDA": str(library),
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(library.parent),
        "DCGAN_DATA_DIR": str(home),
    }
