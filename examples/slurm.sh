#!/bin/bash
# Builds a study on a SLURM cluster: the features in shares, then the index.
# Usage: sh examples/slurm.sh cifar2 16        (a shared folder must hold the checkout and its workspace)
study=$1 shares=$2
run="srun .venv/bin/python -m index_builder"
prepare=$(sbatch --parsable --job-name "$study-prepare" --wrap "$run prepare $study")
train=$(sbatch --parsable --dependency "afterok:$prepare" --gres gpu:1 --job-name "$study-train" \
    --wrap "$run train $study --device cuda")
build=$(sbatch --parsable --dependency "afterok:$train" --gres gpu:1 --array "1-$shares" --job-name "$study-build" \
    --wrap "$run build $study --device cuda --shard \$SLURM_ARRAY_TASK_ID/$shares")
sbatch --dependency "afterok:$build" --job-name "$study-merge" --wrap "$run merge $study"
# The ground truth, once the model is trained: pictures to ask about, then halves in shares. A share that was cut
# off may simply run again: what is finished is kept.
queries=$(sbatch --parsable --dependency "afterok:$train" --gres gpu:1 --job-name "$study-queries" \
    --wrap "$run prepare $study --queries --device cuda")
sbatch --dependency "afterok:$queries" --gres gpu:1 --array "1-$shares" --job-name "$study-truth" \
    --wrap "$run retrain $study --seeds 3 --device cuda --shard \$SLURM_ARRAY_TASK_ID/$shares"
