"""The Python face: a study that is opened, built, asked and measured; and the parts for arrays of your own."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from jaxtyping import Float, UInt8
from PIL import Image

from dtrak.analysis.significance import Verdict, null_of
from dtrak.app.example import example_is_current, save_example_features, write_example
from dtrak.build import pipeline
from dtrak.build.training import train_model
from dtrak.config import Study as StudyConfig
from dtrak.config import load_study, workspace
from dtrak.data import Table, model_pixels
from dtrak.data.images import upright_rgb
from dtrak.evaluation.results import Row, load_evaluation
from dtrak.execution.engines import Engine, local
from dtrak.execution.share import Share
from dtrak.execution.threads import THREADS
from dtrak.gradients.region import Region
from dtrak.methods.attributor import Attributor
from dtrak.methods.queries import generate_query, query_from_file
from dtrak.methods.query import Query
from dtrak.methods.ranking import Ranking
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder, check_name_is_free, needs_training
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import write_bytes
from dtrak.utils.images import enlarged_png
from dtrak.utils.progress import progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
Picture = Image.Image | UInt8[np.ndarray, "h w 3"] | str | Path
Damping = float | Literal["auto"] | None


@dataclass(frozen=True)
class Generated:
    """A generated picture, with all that it was generated from.

    Attributes:
        query: its pixels, label and settings.
    """

    query: Query

    @property
    def image(self) -> Image.Image:
        """As a PIL image."""
        return Image.fromarray(self.query.pixels)

    @property
    def settings(self) -> GenerationSettings:
        """What it was generated from."""
        assert self.query.settings is not None
        return self.query.settings

    def _repr_png_(self) -> bytes:
        return enlarged_png(self.query.pixels, 256)


class Study:
    """One model, its training set, and what was built from them.

    Args:
        config: what the study is; relative paths in one made in Python are relative to the current folder.
        device: where to compute: "cpu", "cuda" or "cuda:1".
    """

    def __init__(self, config: StudyConfig, device: str = "cpu"):
        self.config = _on_disk(config) if config.source == Path() else config
        self.folder = StudyFolder(self.config)
        self.device = device

    @property
    def name(self) -> str:
        """Its name in the workspace."""
        return self.config.name

    @property
    def table(self) -> Table:
        """The training set: records and pixels.

        Raises:
            DtrakError: it is not prepared.
        """
        return self.folder.table

    def train(self, device: str | None = None) -> "Study":
        """Train the model by the study's recipe, and first its base if that is needed; resumable. Returns the study.

        Raises:
            DtrakError: the data cannot be read, or the study does not say how to train.
        """
        train_model(self.folder, device or self.device)
        self.folder = StudyFolder(self.config)
        self.__dict__.pop("attributor", None)
        return self

    def build(
        self,
        index_only: bool = False,
        workers: int | None = None,
        engine: Engine | None = None,
        batch_size: int = 16,
        device: str | None = None,
    ) -> "Study":
        """Prepare the data, compute features and build the index, then what ablations need; resumable.

        Args:
            index_only: leave out what only ablations need.
            workers: processes; default what the cores or GPUs hold.
            engine: who computes; default local processes.
            batch_size: timesteps per forward pass; bounds memory, changes no result.

        Returns:
            The study itself.

        Raises:
            DtrakError: the data cannot be read, or the model is not trained.
        """
        device = device or self.device
        if pipeline.prepare_data(self.folder):
            self.folder = StudyFolder(self.config)  # the table is new
        if needs_training(self.folder):
            raise DtrakError(
                f"The model of study '{self.name}' is not trained.", hint=f"dtrak train {self.name}, or study.train()"
            )
        engine = engine or local(workers, THREADS, device)
        pipeline.build_index_part(self.folder, engine, batch_size, device)
        self._write_example(device)
        logger.info("Index of '%s' is ready in %s.", self.name, self.folder.index)
        if not index_only:
            pipeline.build_rest(self.folder, engine, batch_size, device)
            self._write_example(device)  # with the significance test
            save_example_features(self.folder, device)
        self.__dict__.pop("attributor", None)
        return self

    def build_share(
        self, share: Share, engine: Engine, batch_size: int = 16, device: str | None = None, index_only: bool = False
    ) -> None:
        """Compute one share of the features, for schedulers; :meth:`merge` ends the build."""
        device = device or self.device
        pipeline.build_share(self.folder, share, engine, batch_size, device, not index_only)

    def merge(self, device: str | None = None) -> None:
        """Build the index from what all shares computed.

        Raises:
            DtrakError: some of it is missing.
        """
        pipeline.merge_shares(self.folder, device or self.device)
        self._write_example(device or self.device)
        logger.info("Index of '%s' is ready in %s.", self.name, self.folder.index)

    @cached_property
    def attributor(self) -> Attributor:
        """The study opened for queries."""
        return Attributor(self.folder, self.device)

    def generate(
        self,
        seed: int,
        prompt: str | None = None,
        label: str | None = None,
        steps: int = 50,
        guidance: float | None = None,
        negative: str = "",
    ) -> Generated:
        """Generate a picture.

        Args:
            seed: of its starting noise.
            prompt: for a text-to-image model.
            label: for a model with classes; the same as ``prompt``.
            steps: of the sampler.
            guidance: of classifier-free guidance; default the study's.
            negative: what guidance leads away from.

        Raises:
            DtrakError: the model does not know the label.
        """
        told = prompt if prompt is not None else label
        scale = self.config.guidance if guidance is None else guidance
        return Generated(generate_query(self.attributor, GenerationSettings(seed, steps, told, scale, negative)))

    def attribute(
        self,
        picture: Generated | Query | Picture,
        method: str = "dtrak",
        damping: Damping = None,
        top: int = 10,
        label: str | None = None,
        region: Region | Sequence[float] | None = None,
        exhaustive: bool = False,
        **choices: Any,
    ) -> Ranking:
        """Rank the training images by their influence on one picture.

        Args:
            picture: generated here, a PIL image, an array of 8-bit RGB, or a file.
            method: one of ``dtrak.methods()``.
            damping: λ relative to the kernel's mean non-zero eigenvalue, or "auto"; default the method's.
            top: how many proponents and opponents to list at most.
            label: class or prompt to read an uploaded picture as.
            region: the part that is asked about: left, top, right and bottom from 0 to 1; default all of it.
            exhaustive: score all training images at once; by default the index is searched where it covers the
                method, and ``ranking.scores`` are computed when asked for.
            choices: of the ablations: output, timesteps, strategy, draws, projection_dim, projection_seed,
                checkpoint, normaliser.

        Raises:
            DtrakError: something that the method needs is not built, or the picture cannot be used.
        """
        setting = Setting(method, damping=damping, **choices)
        query = self._query(picture, label)
        if region is not None:
            query = replace(query, region=region if isinstance(region, Region) else Region(*region))
        features = self.attributor.features(query, [setting], by_block=False)
        return self.attributor.attribute(query, features, setting, top, exhaustive)

    def significance(self, ranking: Ranking) -> Verdict:
        """Whether a whole picture's scores exceed those of unrelated images, and for which training images.

        Args:
            ranking: from :meth:`attribute`.

        Raises:
            DtrakError: the method has no significance test, or its features are not built (``study.build()``).
        """
        return null_of(self.attributor, ranking.setting).judge(ranking.scores)

    def scores(
        self,
        pictures: Sequence[Generated | Query | Picture],
        method: str = "dtrak",
        damping: Damping = None,
        **choices: Any,
    ) -> Float[np.ndarray, "queries n"]:
        """The score of every training image for every picture, in row order of :attr:`table`; as :meth:`attribute`."""
        setting = Setting(method, damping=damping, **choices)
        rows = []
        with progress("scores", len(pictures)) as show:
            for done, picture in enumerate(pictures, 1):
                query = self._query(picture, None)
                features = self.attributor.features(query, [setting], by_block=False)
                rows.append(self.attributor.scores(setting, query, features)[0])
                show(done)
        return np.stack(rows) if rows else np.zeros((0, self.table.train_size))

    def evaluate(self, again: bool = False, workers: int | None = None) -> "pd.DataFrame":
        """The measured LDS of every method and choice, one row each and kind of query.

        Args:
            again: measure anew; by default what was measured before, or came with the study, is read.

        Raises:
            DtrakError: there are too few retrained models (``dtrak retrain`` makes them).
        """
        import pandas as pd

        from dtrak.build.measure import evaluate_study

        known = None if again else load_evaluation(self.folder)
        rows: Sequence[Row] = known.rows if known and not known.stale else ()
        rows = rows or evaluate_study(self.folder, local(workers, THREADS, self.device), device=self.device)
        return pd.DataFrame([row.as_dict() for row in rows]).drop(columns="curve")

    def _query(self, picture: Generated | Query | Picture, label: str | None) -> Query:
        if isinstance(picture, Generated):
            return picture.query
        if isinstance(picture, Query):
            return picture
        self.attributor.model.conditioner.check_name(label)
        if isinstance(picture, str | Path):
            return query_from_file(self.attributor, Path(picture), label)[0]
        if not isinstance(picture, Image.Image):
            array = np.asarray(picture)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise DtrakError(
                    f"A picture of shape {array.shape} and type {array.dtype} cannot be read.",
                    hint="Give 8-bit RGB, shape (height, width, 3).",
                )
            picture = Image.fromarray(array)
        return Query(model_pixels(self.config, upright_rgb(picture)), label)

    def _write_example(self, device: str) -> None:
        if not example_is_current(self.folder):
            write_example(self.folder, device)

    def __repr__(self) -> str:
        return f"<Study '{self.name}': {self.config.title}>"


def open_study(study: str | Path | StudyConfig | Study, device: str | None = None) -> Study:
    """Open a study.

    Args:
        study: a name, the path of a YAML file, a configuration made in Python, or an opened study.
        device: where to compute; default the processor, or what an opened study has.

    Raises:
        DtrakError: there is no such study, or its YAML is wrong.
    """
    if isinstance(study, Study):
        return study if device in (None, study.device) else Study(study.config, device or study.device)
    return Study(study if isinstance(study, StudyConfig) else load_study(str(study)), device or "cpu")


def _on_disk(config: StudyConfig) -> StudyConfig:
    """A configuration made in Python, written to the workspace with absolute paths, so that the app finds it."""
    source = workspace() / config.name / "study.yaml"
    check_name_is_free(config.model_copy(update={"source": source}))
    content = config.model_dump(mode="json", exclude_defaults=True)
    for part, keys in (("data", ("path",)), ("model", ("path", "adapter")), ("truth", ("path",))):
        for key in keys:
            value = content.get(part, {}).get(key)
            if value and not (part == "data" and content["data"]["kind"] == "hub"):
                content[part][key] = str(Path(value).expanduser().absolute())
    if (embedding := content.get("embedding")) and Path(embedding).is_dir():
        content["embedding"] = str(Path(embedding).absolute())
    for key in ("checkpoints", "ensemble"):
        if paths := content.get("model", {}).get(key):
            content["model"][key] = [str(Path(path).expanduser().absolute()) for path in paths]
    write_bytes(source, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return StudyConfig(**content, source=source)


__all__ = ["Generated", "Study", "StudyConfig", "open_study"]
