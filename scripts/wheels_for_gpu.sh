#!/bin/sh
# wheels_for_gpu.sh FOLDER: gather the wheels that scripts/prove_gpu.py needs on a bare machine without a network, which
# has Python 3.12, torch for CUDA, transformers, peft, numba and safetensors. faiss-gpu (135 MB) is optional: FAISS=gpu.
# There: python -m pip install --no-index --no-deps FOLDER/*.whl
set -eu
folder=$1
here=$(cd "$(dirname "$0")/.." && pwd)
pins=$(grep -E '^(diffusers|streamlit|jaxtyping|pydantic|PyYAML|filelock|typer|cachetools|pyarrow|scikit-learn|plotly)' \
    "$here/requirements-base.txt")
mkdir -p "$folder"
python3 -m pip download -q --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
    --platform manylinux2014_x86_64 --platform any --dest "$folder" \
    $pins pydantic-core annotated-types typing-inspection wadler-lindig faiss-"${FAISS:-cpu}" pytest pytest-timeout \
    pluggy iniconfig beartype
du -sh "$folder"
