"""Tests of dtrak. Shapes and types in its annotations are checked at every call, by jaxtyping and beartype."""

import os

# One thread a worker, set before torch is loaded and inherited by its processes: threads that outnumber the cores wait
# for each other at every small operation, which took thirty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping

from tests import typecheck  # noqa: F401  so that the hook finds it by its name

# Not hooked: what numba compiles, modules whose annotations name what only type checkers import, and generators
# under no_grad (dtrak.models.sampling).
CHECKED = [
    "dtrak.analysis.comparison", "dtrak.evaluation.lds", "dtrak.gradients.extractor", "dtrak.gradients.outputs",
    "dtrak.gradients.passes", "dtrak.gradients.rows", "dtrak.index.whitening", "dtrak.linalg.conjugate_gradients",
    "dtrak.linalg.kfac", "dtrak.methods.embeddings", "dtrak.methods.readout",
    "dtrak.methods.selection", "dtrak.models.base", "dtrak.models.codec", "dtrak.models.conditioner",
    "dtrak.models.lora", "dtrak.models.pixel", "dtrak.models.process", "dtrak.models.families",
    "dtrak.training", "dtrak.utils.images", "dtrak.utils.noise",
]  # fmt: skip
HOOK = jaxtyping.install_import_hook(CHECKED, "tests.typecheck.check")
