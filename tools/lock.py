"""Pin the versions of everything that pyproject.toml names, in a fresh environment: ``make lock``.

torch is pinned first and by hand: its builds differ between machines (CPU, CUDA), but its version must not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
ROOT = Path(__file__).resolve().parent.parent
NOT_PINNED = ("pip", "setuptools", "wheel", "anitune", "nvidia-", "cuda-", "triton")


def main() -> None:
    """Write requirements.lock."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", TORCH], check=True)
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                f"{ROOT}[dev,dft,postgres,export,launch,kubernetes]",
                TORCH,
            ],
            check=True,
        )
        frozen = subprocess.run(
            [python, "-m", "pip", "freeze", "--exclude-editable"], check=True, capture_output=True, text=True
        ).stdout
    lines = [line.split("+")[0] for line in frozen.splitlines() if not line.startswith(NOT_PINNED)]
    (ROOT / "requirements.lock").write_text("\n".join(line for line in lines if " @ " not in line) + "\n")
    print(f"requirements.lock pins {len(lines)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
