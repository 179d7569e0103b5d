"""``python -m benchmarks.flow [STUDY]``: which output function attributes best for a flow-matching model, and where?

D-TRAK takes the squared norm of what the network predicts. For a velocity v that may be v itself, the noise ε̂ or the
image x̂₀ that follow from it. All are judged on the same retrained models: over all noise levels, and at each alone.
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.report import publish
from dtrak.build.features import ablation_parts, build_features, build_indexes
from dtrak.build.pipeline import compute_features
from dtrak.config import RANDOMISED, FeatureConfig, load_study
from dtrak.evaluation.lds import Estimate, correlations, predicted
from dtrak.evaluation.measure import Result, Scores, Trial, judges, score_matrices
from dtrak.evaluation.results import POWERS
from dtrak.execution.engines import Local
from dtrak.index.store import FeatureStore
from dtrak.methods.attributor import Attributor
from dtrak.methods.base import LOSS, SQUARE
from dtrak.methods.readout import Readout
from dtrak.methods.registry import get_method
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError

ALONE = (SQUARE, f"noise-{SQUARE}", f"image-{SQUARE}", LOSS)  # judged at each noise level
PIXELS = "pixel-rbf"
BASELINES = (PIXELS, "pixel-rbf-label", "same-label", "same-creator", "random")
CONTROLS = {SQUARE: "dtrak", LOSS: "trak"}
TITLES = {SQUARE: "‖v‖²/D", f"noise-{SQUARE}": "‖ε̂‖²/D", f"image-{SQUARE}": "‖x̂₀‖²/D", LOSS: "loss (TRAK)"}
NORMS = {"mean": "mean", "l1-norm": "‖·‖₁", "l2-norm": "‖·‖₂", "linf-norm": "‖·‖∞"}
Results = dict[str, Result]  # by kind of query


def title(output: str) -> str:
    """An output function as a formula."""
    if output in TITLES:
        return TITLES[output]
    view = next((v for v in ("noise", "image") if output.startswith(f"{v}-")), "")
    seen = {"noise": "ε̂", "image": "x̂₀", "": "v"}[view]
    function = NORMS[output.removeprefix(f"{view}-")]
    return f"mean({seen})" if function == "mean" else function.replace("·", seen)


class Study:
    """A study's retrained models, and what is judged on them."""

    def __init__(self, name: str):
        self.folder = StudyFolder(load_study(name))
        self.attributor = Attributor(self.folder)
        self.truth, self.asked = judges(self.attributor)
        self.models = len(self.truth.masks)
        table = self.attributor.table
        self._trials = {kind: Trial(table, self.truth, self.asked, part) for kind, part in self.asked.groups.items()}

    def build(self) -> None:
        """Compute the features of the training images and of the evaluation queries."""
        sets = self.folder.study.sets_of("train") + self.folder.study.sets_of("truth")
        compute_features(self.folder, ablation_parts(sets), Local(2))
        build_indexes(self.folder, build_features(self.folder, Local(2)))

    def judged(self, setting: Setting) -> Results:
        """The LDS of a setting."""
        every = score_matrices(self.attributor, setting, self.asked)
        return {kind: trial.result(every) for kind, trial in self._trials.items()}

    def scores_at(self, output: str, number: int, dampings: Sequence[float]) -> list[Scores]:
        """The scores by one output function at one of its timesteps, on both sides, for each λ."""
        config = next(c for c in self.folder.study.feature_sets if c.output == output and c.apart)
        only = np.eye(len(config.pairs()))[number]
        train, queries = (self._store(config, split).weighted(only) for split in ("train", "truth"))
        return Readout(train).each(queries, dampings)

    def judged_at(self, output: str, number: int) -> Results:
        """The LDS of :meth:`scores_at`."""
        every = self.scores_at(output, number, [10.0**power for power in POWERS])
        return {kind: trial.result(every) for kind, trial in self._trials.items()}

    def like_pixels(self, number: int) -> list[float]:
        """Of each kind of query, how alike ‖v‖²/D at one timestep and pixels predict the retrained models.

        Pearson's correlation over the models, both methods at their default λ, averaged over queries.
        """
        method, pixels = get_method("dtrak"), get_method(PIXELS)
        (mine,) = self.scores_at(SQUARE, number, [method.damping])
        (theirs,) = pixels.score_matrices(self.attributor, Setting(PIXELS), self.asked, [pixels.damping])
        both = (predicted(scores, self.truth.masks) for scores in (mine, theirs))
        found = correlations(*both)
        return [float(found[part].mean()) for part in self.asked.groups.values()]

    def _store(self, config: FeatureConfig, split: str) -> FeatureStore:
        return self.attributor.store(config.model_copy(update={"split": split}))


def shown(found: Estimate) -> str:
    """An estimate × 100 with its interval."""
    low, high = found.interval
    return f"{100 * found.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def function_rows(study: Study) -> Iterator[tuple[str, ...]]:
    """Each output function over all its noise levels, with the difference to ‖v‖²/D; then baselines."""
    outputs = list(dict.fromkeys(c.output for c in study.folder.study.feature_sets))
    settings = {title(o): Setting("dtrak", output=None if o == SQUARE else o) for o in [*outputs, "l2-norm"]}
    settings[TITLES[LOSS]] = Setting("trak")
    settings |= {f"{title(o)}, network shuffled": Setting(m, checkpoint=RANDOMISED) for o, m in CONTROLS.items()}
    settings |= {name: Setting(name) for name in BASELINES}
    reference = study.judged(Setting("dtrak"))
    for name, setting in settings.items():
        try:
            found = study.judged(setting)
        except DtrakError as reason:
            print(f"{name}: {reason}")
            continue
        row = [name]
        for kind, result in found.items():
            same = setting == Setting("dtrak")
            row += [
                shown(result.estimate),
                "" if same else shown(result.estimate - reference[kind].estimate),
                f"{100 * result.partial:.1f}",
            ]
        yield tuple(row)


def level_rows(study: Study) -> Iterator[tuple[str, ...]]:
    """The LDS of the main output functions at one noise level alone."""
    timesteps = study.folder.study.features[0].timestep_list()
    levels = study.attributor.model.process.level(torch.tensor(timesteps))
    for number, level in enumerate(levels.tolist()):
        cells = [study.judged_at(output, number) for output in ALONE]
        row = [f"{level:.2f}"]
        for kind, alike in zip(cells[0], study.like_pixels(number), strict=True):
            row += [*(f"{100 * found[kind].estimate.value:.1f}" for found in cells), f"{alike:.2f}"]
        yield tuple(row)


def main() -> None:
    """Compute the features, print both tables and write them to docs/flow.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="demo-flow")
    study = Study(parser.parse_args().study)
    study.build()
    kinds = list(study.asked.groups)
    about = f" {study.models} subset models; LDS × 100 with 95 % intervals."
    header = ("output function", *(f"{k}{what}" for k in kinds for what in ("", ", less ‖v‖²/D", ", partial")))
    publish("python -m benchmarks.flow", list(function_rows(study)), header, "flow.md", about)
    columns = (*(TITLES[output] for output in ALONE), "‖v‖²/D like pixels")
    header = ("σ", *(f"{kind}: {column}" for kind in kinds for column in columns))
    publish("python -m benchmarks.flow, noise levels", list(level_rows(study)), header, "flow.md", about)


if __name__ == "__main__":
    main()
