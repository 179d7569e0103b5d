#!/bin/sh
# install.sh VENV WHAT: create a virtual environment and install a requirements file or a wheel in it.
# Without an NVIDIA GPU, install the CPU build of torch if available: 0.2 GB instead of 3 GB.
set -eu
venv=$1
what=$2
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "dtrak needs Python 3.11 or newer; try: make PYTHON=python3.12 run" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"
torch=$(grep '^torch==' "$(dirname "$0")/../requirements-base.txt")
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 &&
    ! "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; then
    $pip install -q "$torch+cpu" 2>/dev/null ||
        $pip install -q "$torch+cpu" --index-url https://download.pytorch.org/whl/cpu ||
        echo "No CPU build of $torch found; installing the default one." >&2
fi
case $what in
*.lock) $pip install -q --require-hashes -r "$what" ;;
*.whl) $pip install -q "$what" ;;
*) $pip install -q -r "$what" ;;
esac
