#!/bin/sh
# check_wheel.sh PYTHON: build the wheel, install it into a new environment elsewhere, and build and ask a study there.
# PYTHON is one that has the packages "build" and "hatchling".
set -eu
python=$1
repository=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m build --wheel --no-isolation --outdir "$place" "$repository" >/dev/null
"$python" -m venv "$place/venv"
sh "$repository/scripts/install.sh" "$place/venv" "$place"/dtrak-*.whl
cp "$repository/scripts/check_wheel.py" "$place"
cd "$place"
unset DTRAK_WORKSPACE DTRAK_CONFIGS PYTHONPATH
"$place/venv/bin/python" check_wheel.py
"$place/venv/bin/dtrak" build shapes.yaml
"$place/venv/bin/dtrak" attribute shapes.yaml --seed 1 --steps 5 --json >answer.json
"$place/venv/bin/dtrak" attribute shapes.yaml --image images/0.png --method ekfac --json >/dev/null
"$place/venv/bin/python" -c "import json; assert json.load(open('answer.json'))['study'] == 'shapes'"
[ -d "$place/workspace/shapes/index" ]
echo "The wheel installs, builds a study and answers."
