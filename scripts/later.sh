#!/bin/sh
# Build in the background what the app does not need at start: ablation features, then the evaluation.
# Usage: sh scripts/later.sh PYTHON STUDY. Stops its child process when it is stopped.
python=$1 study=$2 child=
trap 'kill $child 2>/dev/null; exit 143' INT TERM
step() {
    "$python" -m index_builder "$@" --workers 1 &
    child=$!
    wait $child
}
step build "$study" && step evaluate "$study"
