#!/bin/sh
# Build in the background while the app is open: the index, then ablation features, then what Evaluate and Ablate need.
# Usage: sh scripts/later.sh PYTHON STUDY. Stops its child process when it is stopped.
python=$1 study=$2 child=
trap 'kill $child 2>/dev/null; exit 143' INT TERM
step() {
    "$python" -m index_builder "$@" &
    child=$!
    wait $child
}
step build "$study" --index-only && step build "$study" --workers 1 && step evaluate "$study" --missing-only --workers 1
