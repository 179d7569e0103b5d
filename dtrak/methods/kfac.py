"""EK-FAC influence: the query's gradient is preconditioned over all tuned weights, then projected.

    τ(x, n) = ⟨P (F + λI)⁻¹ ∇L(x), φₙ⟩

The projection preserves inner products in expectation, so the stored features of the loss serve as the training
side. F is the EK-FAC matrix of :mod:`dtrak.linalg.kfac`, fitted once to a sample of training images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dtrak.config import LAST
from dtrak.methods.base import LOSS, Features, Method, Need, Scores
from dtrak.methods.influence import GradientMethod
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, exclusive, write_npy
from dtrak.utils.noise import feature_noise, keyed_generator

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from dtrak.config import FeatureConfig
    from dtrak.index.faiss_index import QueryFeature
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query, QuerySet
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide

IMAGES, TIMESTEPS = 128, 4  # F is fitted to this many training images, each at this many keyed timesteps
VERSION = 1  # part of the factors' digest: raise it whenever the fit changes


@dataclass(frozen=True, kw_only=True)
class EkfacMethod(GradientMethod):
    """λ acts before the projection, so a query needs a feature for each λ."""

    needs: str = "features of the loss; EK-FAC factors (fitted by build)"
    choices: ClassVar[frozenset[str]] = frozenset({"damping"})
    light: ClassVar[bool] = False
    tested: ClassVar[bool] = False
    regional: ClassVar[bool] = False

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """No: the preconditioner mixes the parts of the query."""
        return False

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        super().require(study)
        if not factors_path(study).exists():
            name = study.folder.study.name
            raise DtrakError(
                f"The EK-FAC factors of '{name}' are not fitted yet.", hint=f"python -m index_builder build {name}"
            )

    def query_needs(self, study: Attributor, setting: Setting, query: Query) -> list[Need]:
        """See :class:`Method`."""
        self.require(study)
        damping = self._damping(setting)
        config = self._config(study, setting)
        content = {**study.identity(config), "ekfac": factors_path(study).stem, "damping": damping}
        return [Need(config, content, partial(_preconditioned, config, content, damping))]

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        (side,) = self.sides(study, setting)
        vector = study.present(features, self.query_needs(study, setting, query)[0].key).vector
        return study.readout(side).scores(vector), self._damping(setting)

    def score_matrices(
        self, study: Attributor, setting: Setting, asked: QuerySet, dampings: Sequence[float]
    ) -> list[Float[np.ndarray, "q n"]]:
        """See :class:`Method`; the queries' features take a pass over their timesteps, so they are cached on disk."""
        self.require(study)
        wanted = list(dampings) if setting.damping is None else [self._damping(setting)]
        (side,) = self.sides(study, setting)
        config = self._config(study, setting)
        content = [study.identity(config), factors_path(study).stem, wanted]
        rows = []
        for query in asked.queries:
            kept = study.folder.root / "truth" / "ekfac" / f"{digest([content, query.id, query.label])}.npy"
            if not kept.exists():
                write_npy(kept, _vectors(config, wanted, study, query))
            rows.append(np.load(kept))
        readout = study.readout(side)
        return [readout.scores(matrix) for matrix in np.stack(rows, axis=1)]

    def row_scores(self, *_: Any) -> Any:
        """Refused: the query's λ acts before the projection, so other queries' stored features cannot be scored alike.

        Raises:
            DtrakError: always.
        """
        raise DtrakError(f"{self.title} has no null distribution.", hint="Choose D-TRAK or TRAK for that.")

    def sweep(self, *_: Any) -> Any:
        """Refused, as :meth:`row_scores`."""
        return self.row_scores()

    def search(self, *_: Any) -> None:
        """None: the index does not cover these query features."""
        return None

    def _damping(self, setting: Setting) -> float:
        wanted = self.wanted_damping(setting)
        if not isinstance(wanted, float):
            raise DtrakError(f"{self.title} needs a number for λ, not 'auto'.", hint="Set λ to a number.")
        return wanted

    def _config(self, study: TrainingSide, setting: Setting) -> FeatureConfig:
        (side,) = self.sides(study, setting)
        return side.sources[0].config.model_copy(update={"split": "train"})


def factors_path(study: TrainingSide) -> Path:
    """The file of the EK-FAC factors for the study's model and training images."""
    depends = ["ekfac", VERSION, study.model_fingerprint(LAST), study.data_fingerprint, IMAGES, TIMESTEPS]
    return study.folder.root / "ekfac" / f"{digest(depends)}.safetensors"


def fit_factors(study: TrainingSide, report: Callable[[int, int], None] = lambda done, total: None) -> bool:
    """Fit the factors and store them; False if they exist already.

    Args:
        report: called with (images done, total images), in each of two passes.

    Raises:
        DtrakError: another process works on the study.
    """
    from dtrak.execution.threads import task_threads
    from dtrak.linalg.kfac import fit

    path = factors_path(study)
    if path.exists():
        return False
    with exclusive(study.folder.root, f"study '{study.folder.study.name}'"), task_threads():
        fit(study.model.network, lambda: _batches(study, report)).save(path)
    return True


def _batches(study: TrainingSide, report: Callable[[int, int], None]) -> Iterator[tuple[Any, Tensor]]:
    """One image per batch, with keyed timesteps, noise and cotangent v."""
    import torch

    model, table = study.model, study.table
    order = keyed_generator("ekfac", 0, "images").permutation(table.train_size)[:IMAGES]
    for done, row in enumerate(order.tolist()):
        report(done, len(order))
        sample = table.records[row].id
        random = keyed_generator("ekfac", 0, sample)
        steps = random.integers(model.num_timesteps, size=TIMESTEPS).tolist()
        x = model.encode(table.pixels[row][None]).to(model.device).expand(TIMESTEPS, *model.latent_shape)
        noise = torch.from_numpy(feature_noise(0, sample, [(t, 0) for t in steps], model.latent_shape))
        timesteps = torch.tensor(steps, device=model.device)
        x_t = model.add_noise(x, noise.to(model.device), timesteps)
        told = model.condition([table.names[row]] * TIMESTEPS)
        z = torch.from_numpy(random.standard_normal((1, TIMESTEPS, *model.latent_shape), np.float32))
        size = x_t[0].numel()
        yield partial(model.predict, x_t, timesteps, told), z.to(model.device) * (2 / size) ** 0.5


def _vectors(
    config: FeatureConfig, dampings: Sequence[float], study: Attributor, query: Query
) -> Float[np.ndarray, "dampings k"]:
    """P (F + λI)⁻¹ ∇L(x) for each λ."""
    from dtrak.execution.threads import task_threads
    from dtrak.gradients.extractor import mean_gradient
    from dtrak.gradients.projection import make_projector
    from dtrak.linalg.kfac import Kfac

    model = study.variant(config.model)
    factors = study.kept("ekfac", lambda: Kfac.load(factors_path(study)))
    gradient = mean_gradient(model, query.pixels, query.id, query.label, config, study.batch_size)
    like = next(iter(gradient.values()))
    size = sum(g.numel() for g in gradient.values())
    projector = make_projector(config.projection, size, config.projection_dim, config.projection_seed, model.device)
    rows = []
    with task_threads():
        turned = factors.turn(gradient)
        for damping in dampings:
            total, start = projector.begin(1, like), 0
            for piece in factors.solve(turned, gradient, damping).values():
                projector.add(total, piece[None], start)
                start += piece.numel()
            rows.append(projector.result(total)[0].cpu().numpy())
    return np.stack(rows)


def _preconditioned(
    config: FeatureConfig, identity: dict[str, Any], damping: float, study: Attributor, query: Query
) -> QueryFeature:
    from dtrak.gradients.extractor import SampleFeature

    vectors = _vectors(config, [damping], study, query).astype(np.float32)
    return study.as_query_feature(SampleFeature(vectors, np.zeros((1, 2), np.float32)), identity)


METHODS: tuple[Method, ...] = (
    EkfacMethod(
        name="ekfac",
        title="EK-FAC influence",
        output=LOSS,
        damping=0.1,
        formula="τ(x, n) = ⟨P (F + λI)⁻¹ ∇L(x), φₙ⟩,  F the Gauss–Newton matrix in EK-FAC form, φ of the loss",
        source="Grosse et al., 2023 (arXiv 2308.03296); Mlodozeniec et al., ICLR 2025 (arXiv 2410.13850)",
    ),
)
