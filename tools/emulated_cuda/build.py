"""Compiles ``guard.cpp`` at first use, and loads it.

``python -m tools.emulated_cuda.build`` builds it, or prints why it cannot and exits with 1.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("guard.cpp")
CACHE: Final = Path(__file__).resolve().parents[2] / "build" / "emulated_cuda"


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: ``$CXX``, ``c++`` or ``g++``; None if there is none."""
    for command in (os.environ.get("CXX", ""), "c++", "g++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


def load_guard() -> ctypes.CDLL:
    """Load the compiled guard; it is built only once for each version of torch and of the source."""
    import torch

    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = CACHE / f"guard-{key}.so"
    if not library.exists():
        _compile(library, Path(torch.__file__).parent)
    return ctypes.CDLL(str(library))


def _compile(library: Path, torch_folder: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("an emulated CUDA device needs a C++ compiler (set CXX, or install g++)")
    library.parent.mkdir(parents=True, exist_ok=True)
    options = ["-O1", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder}/include"]
    link = [f"-L{torch_folder}/lib", "-lc10"]
    # Processes that build at the same time must not see each other's unfinished files.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        subprocess.run([*compiler, *options, str(SOURCE), "-o", str(built), *link], check=True)
        built.replace(library)


def main() -> None:
    import torch

    if torch.version.cuda is not None:
        sys.exit(
            "tests/gpu was not run: an emulated CUDA device needs a CPU build of torch (see make test-gpu)"
        )
    if find_compiler() is None:
        sys.exit(
            "tests/gpu was not run: an emulated CUDA device needs a C++ compiler (set CXX, or install g++)"
        )
    load_guard()


if __name__ == "__main__":
    main()
