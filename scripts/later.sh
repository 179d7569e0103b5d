#!/bin/sh
# What the pages can use but need not wait for: the ablations' features, then the methods' measured quality.
# Usage: sh scripts/later.sh PYTHON STUDY. Ends its child when it is ended.
python=$1 study=$2 child=
trap 'kill $child 2>/dev/null; exit 143' INT TERM
step() {
    "$python" -m index_builder "$@" --workers 1 &
    child=$!
    wait $child
}
step build "$study" && step evaluate "$study"
