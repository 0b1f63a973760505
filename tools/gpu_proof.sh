#!/bin/sh
# Run benchmarks.gpu_proof from this checkout, with a Python whose torch has CUDA. Nothing else need be
# installed: missing packages go into a folder of their own, from the wheels in .whl if that folder exists,
# else from the index, in the versions of requirements.lock. The installed torch is kept.
set -eu
cd "$(dirname "$0")/.."
packages=$PWD/build/gpu-proof-packages

# Importable name, and the name of the distribution where it differs; torch is never among them.
needed="numpy h5py filelock safetensors tqdm torchani pydantic pydantic_core:pydantic-core
annotated_types:annotated-types typing_inspection:typing-inspection typing_extensions:typing-extensions
pytest iniconfig pluggy packaging pygments pytest_timeout:pytest-timeout hypothesis sortedcontainers"

has_cuda() { "$1" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; }

python=
for candidate in ${PYTHON:-.venv/bin/python python3}; do
    if has_cuda "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "No Python here has a torch with CUDA. Name one with PYTHON=, or make one with: make install" >&2
    exit 2
fi

export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
missing=
for name in $needed; do
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('${name%%:*}') is None)" ||
        missing="$missing ${name##*:}"
done
if [ -n "$missing" ]; then
    if [ -d .whl ]; then source="--no-index --find-links .whl"; else source="--constraint requirements.lock"; fi
    echo "Installing into build/gpu-proof-packages:$missing"
    # shellcheck disable=SC2086  # both are lists of words
    "$python" -m pip install --quiet --no-deps --upgrade --target "$packages" $source $missing
fi
exec "$python" -m benchmarks.gpu_proof "$@"
