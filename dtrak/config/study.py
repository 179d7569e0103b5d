"""The configuration of a study, read from a YAML file into frozen models; defaults are declared here."""

import string
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dtrak.config.features import RANDOMISED, TIMES, FeatureConfig, Frozen, Split


class DataConfig(Frozen):
    """The source of the training images.

    ``imagefolder`` reads a folder of images (sub-folders are labels, ``metadata.csv`` adds
    columns), ``parquet`` a file or folder of Parquet, ``hub`` a data set by its hub name, and
    ``cifar10``, ``celeba`` and ``artbench`` the archives in which these are distributed.

    ``train_size`` and ``heldout_size`` draw that many images as the paper does, by scikit-learn's
    ``train_test_split`` with ``split_seed``, and keep the order of the draw. With ``heldout_split``,
    held-out images come from that split of the source. A release that is missing at ``path`` is read
    from ``hub`` if that is set.
    """

    kind: Literal["imagefolder", "parquet", "hub", "cifar10", "celeba", "artbench"]
    path: str | None = None
    hub: str | None = None
    md5: tuple[str, ...] = ()
    split: str = "train"
    heldout_split: str | None = None
    train_size: int | None = Field(None, gt=0)
    heldout_size: int | None = Field(None, gt=0)
    stratify: bool = True
    crop: int | None = Field(None, gt=0)
    resample: Literal["lanczos", "bilinear"] = "lanczos"
    keep_duplicates: bool = False
    caption_template: str | None = None
    config_name: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_column: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    creator_column: str | None = None
    licence_column: str | None = None
    licence: str | None = None
    creator: str | None = None
    credit: str | None = None
    holdout: float = Field(0.1, ge=0, lt=1)
    split_seed: int = 0
    max_pixels: int = Field(50_000_000, gt=0)

    @model_validator(mode="after")
    def _needs_path(self) -> "DataConfig":
        if not (self.path or (self.hub and self.kind not in ("imagefolder", "parquet"))):
            raise ValueError(f"data of kind '{self.kind}' needs a 'path'")
        for _, name, spec, conversion in string.Formatter().parse(self.caption_template or ""):
            if name is not None and (name != "label" or spec or conversion):
                raise ValueError("'caption_template' may contain {label} and no other placeholder")
        if self.heldout_size and not self.heldout_split:
            raise ValueError("'heldout_size' needs a 'heldout_split'")
        return self


class ModelConfig(Frozen):
    """The model: a directory to load, a LoRA adapter on it, or an architecture to train.

    ``kind`` "pixel" is a ``UNet2DModel``, class-conditional or unconditional; "text-to-image" is a pipeline
    conditioned on captions, of a family that its ``model_index.json`` names (see ``dtrak.models.families``). In a
    YAML file it may be "auto": "text-to-image" for what is on the hub or has a text encoder.
    ``base`` is what training starts from: a study's name, or a model's directory. If the study's model is a LoRA
    on a base of its own, it is merged into that.
    ``hub`` names a model on the Hugging Face Hub, used instead of ``path``. ``dtype`` is that of the frozen
    weights; tuned weights and gradients are in float32. ``guidance_input`` is the guidance scale that
    guidance-distilled networks (FLUX.1 dev, FLUX.2 dev) take as input. ``gradient_checkpointing`` computes
    activations again in the backward pass instead of keeping them: about half more time, far less memory.
    ``quantise`` "int8" keeps the network's frozen matrices in 8 bits (torchao); what is tuned stays in float32.
    ``checkpoints`` are earlier checkpoints of the model (TracInCP, GAS); ``ensemble`` are models trained on
    other halves of the data (ensemble methods). Each is a directory of the same kind as the model itself.
    """

    kind: Literal["pixel", "text-to-image"] = "pixel"
    path: Path | None = None
    hub: str | None = None
    adapter: Path | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    checkpoints: tuple[Path, ...] = ()
    ensemble: tuple[Path, ...] = ()
    base: str | None = None
    unet: dict[str, Any] | None = None
    classes: dict[str, int] | None = None
    null_class: int | None = None
    guidance_input: float = Field(3.5, ge=0)
    gradient_checkpointing: bool = False
    quantise: Literal["int8"] | None = None

    @model_validator(mode="after")
    def _of_pipelines(self) -> "ModelConfig":
        large = self.dtype != "float32" or self.hub or self.gradient_checkpointing or self.quantise
        if self.kind == "pixel" and large:
            raise ValueError("'dtype', 'hub', 'gradient_checkpointing' and 'quantise' need kind 'text-to-image'")
        return self


class TrainingConfig(Frozen):
    """The training recipe. Rates and sizes are per step; ``seed`` determines all randomness.

    ``timestep_sampling`` "stratified" draws one timestep per batch position from ``batch_size`` equal
    intervals, which reduces the variance of the batch gradient; "logit-normal" prefers the middle of the range.
    Flow-matching models ignore ``min_snr_gamma``.
    """

    method: Literal["full", "lora"] = "full"
    steps: int = Field(1000, gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(1e-5, ge=0)
    warmup: int = Field(100, ge=0)
    constant: float = Field(0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    min_snr_gamma: float | None = Field(5.0, gt=0)
    timestep_sampling: Literal["independent", "stratified", "logit-normal"] = "independent"
    clip: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    dropout_modules: str = ""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    class_dropout: float = Field(0.1, ge=0, le=1)
    flip: bool = False
    rank: int = Field(16, gt=0)
    alpha: float = Field(16.0, gt=0)
    lora_modules: tuple[str, ...] = ()
    lora_init: Literal["default", "gaussian"] = "default"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    save_every: int = Field(500, gt=0)
    members: int = Field(0, ge=0)
    checkpoints: tuple[float, ...] = (1.0,)


class TruthConfig(Frozen):
    """The ground truth: evaluation queries, loss measurement, and subsets of retrained models.

    ``path`` is a folder of results shipped with the study. ``generated`` is the number of generated queries.
    Losses are averaged over ``timesteps`` evenly spaced timesteps with ``draws`` noise draws each. With
    ``first_seed`` the subsets of a family are those of scikit-learn's ``train_test_split`` with the seeds
    first, first + 2, …, as in the paper's code; otherwise they are keyed by (family, number) and, with
    ``stratified``, contain the same share of each label and creator.
    """

    path: Path | None = None
    generated: int = Field(200, ge=1)
    timesteps: int = Field(10, ge=1, le=TIMES)
    draws: int = Field(1, ge=1)
    stratified: bool = True
    first_seed: dict[Literal["lds", "fit"], int] | None = None

    @property
    def judged_timesteps(self) -> list[int]:
        """The timesteps at which losses are measured: the midpoints of ``timesteps`` equal intervals."""
        part = TIMES // self.timesteps
        return list(range(part // 2, TIMES, part))[: self.timesteps]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All (timestep, draw) pairs at which losses are measured, draws outermost."""
        return [(t, draw) for draw in range(self.draws) for t in self.judged_timesteps]

    @model_validator(mode="after")
    def _both_families(self) -> "TruthConfig":
        if self.first_seed is not None and len(self.first_seed) != 2:
            raise ValueError("'first_seed' needs both 'lds' and 'fit'")
        return self


class UnrelatedConfig(Frozen):
    """The unrelated images of the significance test: ``drawings`` drawings, and ``count`` of each other kind.

    ``path`` is a folder of images to use instead of the drawings that dtrak ships. Real images that the model
    was not tuned on, such as images of its base, make the test stricter.
    """

    path: str | None = None
    drawings: int = Field(128, ge=20)
    count: int = Field(64, ge=20)

    @model_validator(mode="after")
    def _enough_shipped(self) -> "UnrelatedConfig":
        if self.path is None and self.drawings > 256:
            raise ValueError("dtrak ships 256 drawings; set 'path' to use more")
        return self


class ExampleConfig(Frozen):
    """A generated image that a build saves, so that no page is empty; a study's first one is shown on Home.

    ``label`` is a class or a prompt.
    """

    seed: int = Field(ge=0)
    label: str | None = None
    steps: int = Field(50, gt=0)


class Study(Frozen):
    """The configuration of a study: one model, its training set, and the features to build."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    description: str = ""
    data: DataConfig
    resolution: int = Field(gt=0, le=1024)
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    features: tuple[FeatureConfig, ...] = (
        FeatureConfig(output="mean-squared-l2-norm"),
        FeatureConfig(output="loss", projection_dim=16_384),  # TRAK needs more columns (docs/benchmarks.md)
    )
    ablations: tuple[FeatureConfig, ...] = ()
    index_factory: str = "Flat"
    embedding: str = "efficientnet-lite0"
    truth: TruthConfig = TruthConfig()
    unrelated: UnrelatedConfig = UnrelatedConfig()
    guidance: float = Field(1.0, ge=0)
    examples: tuple[ExampleConfig, ...] = ()
    source: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def _one_forward_pass(self) -> "Study":
        if self.model.gradient_checkpointing and self.training.dropout:
            raise ValueError(
                "'gradient_checkpointing' needs training without 'dropout': its second pass would drop others"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _kind_of_model(cls, content: Any) -> Any:
        model = content.get("model") if isinstance(content, dict) else None
        if not isinstance(model, dict) or model.get("kind") != "auto":
            return content
        path = Path(str(model.get("path") or ".")).expanduser()
        text = model.get("hub") or (Path(content.get("source", ".")).parent / path / "text_encoder").is_dir()
        return {**content, "model": {**model, "kind": "text-to-image" if text else "pixel"}}

    @property
    def feature_sets(self) -> tuple[FeatureConfig, ...]:
        """All listed feature sets: those of the index, then those of the ablations."""
        return self.features + self.ablations

    @property
    def embedding_source(self) -> str:
        """The name of the image embedding, or its folder; a relative one lies beside the YAML file."""
        folder = self.resolve(self.embedding)
        return str(folder) if folder.is_dir() else self.embedding

    @property
    def later_sets(self) -> tuple[FeatureConfig, ...]:
        """What a build computes after the index: the significance test's sets, then those of the ablations."""
        return self.unrelated_sets + self.ablations

    @property
    def unrelated_sets(self) -> tuple[FeatureConfig, ...]:
        """The feature sets that the significance test needs by default: those of the index, on unrelated images."""
        return tuple(config.model_copy(update={"split": "unrelated"}) for config in self.features)

    @property
    def control_sets(self) -> tuple[FeatureConfig, ...]:
        """The negative control's feature sets: the index's first set of each output, with shuffled weights."""
        first = {config.output: config for config in reversed(self.features)}
        if not first:
            return ()
        changes = {"model": RANDOMISED, "apart": False, "projection_dim": min(2048, self.features[0].projection_dim)}
        return tuple(config.model_copy(update=changes) for config in first.values())

    def sets_of(self, split: Split) -> tuple[FeatureConfig, ...]:
        """All feature sets that may be built for a split."""
        trained = self.feature_sets + self.control_sets
        return trained if split == "train" else tuple(c.model_copy(update={"split": split}) for c in trained)

    def resolve(self, path: str | Path) -> Path:
        """An absolute path; relative ones are relative to the folder of the YAML file."""
        path = Path(path).expanduser()
        return path if path.is_absolute() else (self.source.parent / path).resolve()
