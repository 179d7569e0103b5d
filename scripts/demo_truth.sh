#!/bin/sh
# demo_truth.sh PYTHON: make the demo's ground truth, the most valuable part first; about ten hours on two cores.
# Resumable: stopped at any time, it goes on from what is finished. The last step copies it to assets/demo/truth.
set -eu
python=$1
cd "$(dirname "$0")/.."
run() {
    "$python" -m index_builder "$@"
    keep
}
keep() {
    mkdir -p assets/demo/truth
    cp -r workspace/demo/truth/. assets/demo/truth/
    mkdir -p assets/demo/truth/example
    cp workspace/demo/index/example* assets/demo/truth/example/
    rm -rf assets/demo/truth/ekfac assets/demo/truth/paths assets/demo/truth/*.lock
}
run build demo --index-only
run retrain demo --subsets 96
run removals demo
run retrain demo --subsets 8 --seeds 2
run retrain demo --family creators --subsets 6 --seeds 2
run retrain demo --family remove-20 --subsets 48
run retrain demo --family fit --subsets 128
run retrain demo --family remove-5 --subsets 48
run counterfactual demo --queries 16
run build demo
run evaluate demo
run build demo --index-only
