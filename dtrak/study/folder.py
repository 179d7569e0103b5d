"""A study on disk: paths of its parts, and the state of its model. This module does not import torch."""

import functools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from dtrak.config import (
    LAST,
    SOURCE_FILE,
    ModelConfig,
    Study,
    configs,
    load_study,
    study_source,
    workspace,
)
from dtrak.data import Table, load_table
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_json, sha256_file, write_json

CONDITIONING = "conditioning"  # folder of what captions are encoded to
LATENTS = "latents"  # folder of what training images are encoded to
PREDICTION_KEYS = {"kind", "dtype", "guidance_input", "quantise"}  # of the model, beside its weights
PIPELINE_FILES = [
    "model_index.json",
    *(
        f"{part}/*.{kind}"
        for part in (
            "unet",
            "transformer",
            "vae",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
            "tokenizer",
            "tokenizer_2",
            "tokenizer_3",
            "scheduler",
        )
        for kind in ("json", "safetensors", "txt", "model")
    ),  # no pickles
]


@dataclass(frozen=True)
class StudyFolder:
    """The paths of one study in the workspace."""

    study: Study

    @cached_property
    def root(self) -> Path:
        return workspace() / self.study.name

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def model_dir(self) -> Path:
        return self.root / "model"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @cached_property
    def table(self) -> Table:
        """The prepared table of images.

        Raises:
            DtrakError: the data are not prepared.
        """
        return load_table(self.data, self.study.model.kind == "text-to-image")


def trained_model_config(folder: StudyFolder) -> ModelConfig:
    """The paths of the study's model; one trained in the workspace takes precedence over the configured one.

    Raises:
        DtrakError: the base model is not available.
    """
    config = folder.study.model
    done = folder.model_dir / "training.json"
    if done.exists():
        final = folder.model_dir / read_json(done)["checkpoints"][-1]
        if folder.study.training.method == "lora":
            return config.model_copy(update={"path": base_path(folder.study), "adapter": final})
        return config.model_copy(update={"path": final})
    path = config.path or (base_path(folder.study) if config.base or config.hub else None)
    update = {
        "path": folder.study.resolve(path) if path else None,
        "adapter": folder.study.resolve(config.adapter) if config.adapter else None,
    }
    return config.model_copy(update=update)


def base_path(study: Study) -> Path:
    """The directory of the model that ``study`` fine-tunes.

    Raises:
        DtrakError: the study names no base model, or it is not available.
    """
    if directory := _base_directory(study):
        return directory
    if tuned := base_study(study):
        _check_bases(study)
        base = trained_model_config(StudyFolder(tuned))
        if base.path:
            return base.path
    if study.model.path:
        return study.resolve(study.model.path)
    if study.model.hub:
        return hub_folder(study.model.hub)
    raise DtrakError(f"Study '{study.name}' has no base model.", hint="Set model.base, model.path or model.hub.")


def base_adapters(study: Study, path: Path) -> list[Path]:
    """The adapters that belong to the weights in ``path`` where those are what ``study`` fine-tunes.

    A base study's model may be an adapter on a base of its own; merged in this order, they are what is fine-tuned.

    Raises:
        DtrakError: the base model is not available.
    """
    tuned = base_study(study)
    if tuned is None or path != base_path(study):
        return []
    adapter = trained_model_config(StudyFolder(tuned)).adapter
    return [*base_adapters(tuned, path), adapter] if adapter else []


def base_study(study: Study) -> Study | None:
    """The study whose model is fine-tuned; None where ``model.base`` names a model's directory, or nothing."""
    return load_study(study.model.base) if study.model.base and not _base_directory(study) else None


def _base_directory(study: Study) -> Path | None:
    directory = study.resolve(study.model.base) if study.model.base else None
    is_model = directory and any((directory / name).exists() for name in ("config.json", "unet", "model_index.json"))
    return directory if is_model else None


def _check_bases(study: Study) -> None:
    """Refuse a study that is, through other studies, its own base."""
    chain = [study.name]
    while tuned := base_study(study):
        study = tuned
        chain.append(study.name)
        if chain.count(study.name) > 1:
            raise DtrakError(f"model.base goes round: {' → '.join(chain)}.", hint="Set another model.base.")


def hub_folder(name: str, download: bool = False) -> Path:
    """The local copy of a model from the Hugging Face Hub.

    Args:
        download: download missing files; by default nothing is downloaded.

    Raises:
        DtrakError: there is no local copy, or the download fails.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=not download, allow_patterns=PIPELINE_FILES))
    except Exception as error:  # the hub raises many types
        raise DtrakError(
            f"Cannot download the model '{name}': {error}" if download else f"The model '{name}' is not downloaded.",
            hint="Download it with python -m index_builder prepare STUDY, or set model.path to a local copy.",
        ) from error


@dataclass(frozen=True)
class Variant:
    """One of a study's models.

    Attributes:
        path: the directory of the adapter if the model is an adapter on a base, else of the model.
    """

    path: Path | None
    kind: Literal["last", "checkpoint", "member"]


def model_variants(folder: StudyFolder) -> dict[str, Variant]:
    """The study's models by name: "last", its earlier checkpoints, and the members of its ensemble.

    Raises:
        DtrakError: two of them have the same name.
    """
    study, config = folder.study, trained_model_config(folder)
    done = folder.model_dir / "training.json"
    checkpoints = [study.resolve(p) for p in study.model.checkpoints]
    if done.exists():
        checkpoints = [folder.model_dir / name for name in read_json(done)["checkpoints"][:-1]]
    own = [folder.model_dir / member_name(i) for i in range(1, study.training.members + 1)]
    members = [p for p in own if (p / "member.json").exists()] or [study.resolve(p) for p in study.model.ensemble]
    found = {LAST: Variant(config.adapter or config.path, "last")}
    for paths, kind in ((checkpoints, "checkpoint"), (members, "member")):
        for path in paths:
            if path.name in found:
                raise DtrakError(
                    f"Two models of study '{study.name}' have the name '{path.name}'.",
                    hint="Rename one of the folders.",
                )
            found[path.name] = Variant(path, kind)  # type: ignore[arg-type]
    return found


def member_name(number: int) -> str:
    """The name of an ensemble member, from 1."""
    return f"member-{number}"


def remember_source(folder: StudyFolder) -> None:
    """Record the YAML file of a study given by path, so that it can be opened by name.

    Raises:
        DtrakError: the workspace has another study of that name.
    """
    study, known = folder.study, study_source(folder.study.name)
    check_name_is_free(study)
    if known is not None and known != study.source and known.exists():
        raise DtrakError(
            f"The workspace already has a study '{study.name}', configured by {known}.",
            hint="Change 'name' in one of the YAML files, or set DTRAK_WORKSPACE.",
        )
    if study.source.parent != configs().resolve() and known != study.source:
        write_json(folder.root / SOURCE_FILE, {"source": str(study.source)})


def check_name_is_free(study: Study) -> None:
    """Refuse a study that would share the folder of one that comes with dtrak.

    Raises:
        DtrakError: they have one name.
    """
    shipped = configs().resolve() / f"{study.name}.yaml"
    if shipped.exists() and study.source.resolve() != shipped:
        raise DtrakError(
            f"'{study.name}' is the name of a study in {configs()}.", hint="Choose another 'name' for this one."
        )


def truth_folders(folder: StudyFolder) -> list[Path]:
    """The folders of retrained models and results: the workspace's, then the one shipped with the study."""
    shipped = folder.study.truth.path
    return [folder.root / "truth"] + ([folder.study.resolve(shipped)] if shipped else [])


def check_retrainable(folder: StudyFolder) -> None:
    """Check that the study says what its training starts from: retraining must not start from trained weights.

    Raises:
        DtrakError: it does not; the hint says what to set.
    """
    study = folder.study
    fresh_adapter = study.training.method == "lora" and (study.model.base or study.model.adapter or study.model.hub)
    trained_here = (folder.model_dir / "training.json").exists()
    if not (study.model.unet or study.model.base or fresh_adapter or trained_here):
        raise DtrakError(
            f"Study '{study.name}' does not say how its model was trained, so it cannot be retrained.",
            hint="Set model.unet (training from scratch), model.base, or model.path with model.adapter and "
            "training.method: lora; and set the training keys.",
        )


def recipe_digest(folder: StudyFolder) -> str:
    """A digest of what a training depends on, without its data, seed and precision."""
    study = folder.study
    unrelated = {"seed", "precision", "save_every", "checkpoints", "members"}
    start = study.model.unet or _base_digest(study, base_path(study))
    recipe = study.training.model_dump(mode="json", exclude=unrelated, exclude_defaults=True)
    model = study.model.model_dump(mode="json", include=PREDICTION_KEYS, exclude_defaults=True)
    return digest([recipe, start, study.resolution, *([model] if model else [])])


def model_digest(folder: StudyFolder) -> str:
    """A digest of the weight files of the study's model; does not load the network."""
    config = trained_model_config(folder)
    told = folder.study.model.model_dump(mode="json", include={"guidance_input"}, exclude_defaults=True)
    weights = [_base_digest(folder.study, config.path)] if config.path else []
    adapter = [weights_digest(config.adapter)] if config.adapter else []
    return digest([*weights, *adapter, *([told] if told else [])])


def _base_digest(study: Study, path: Path) -> str:
    """A digest of weights with the adapters that belong to them."""
    found = [weights_digest(part) for part in (path, *base_adapters(study, path))]
    return digest(found) if len(found) > 1 else found[0]


def weights_digest(folder: Path) -> str:
    """A digest of the weight files in ``folder``, or of ``folder`` itself if it is a file."""
    found = [path for kind in ("*.safetensors", "*.bin") for path in folder.rglob(kind)]
    files = [folder] if folder.is_file() else sorted(found)
    return digest([[f.name, _file_digest(f, f.stat().st_size, f.stat().st_mtime_ns)] for f in files])


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified: int) -> str:
    return sha256_file(path)


def not_fetched(study: Study) -> bool:
    """Whether the study's model is on a hub and has no local copy."""
    if study.model.hub is None or study.model.path:
        return False
    try:
        return not hub_folder(study.model.hub).exists()
    except DtrakError:
        return True


def needs_training(folder: StudyFolder) -> bool:
    """Whether the study's model is still to be trained: neither in the workspace nor configured."""
    study = folder.study
    if not_fetched(study):
        return study.model.adapter is None and not (folder.model_dir / "training.json").exists()
    config = trained_model_config(folder)
    untuned = study.training.method == "lora" and config.adapter is None
    return config.path is None or not config.path.exists() or untuned
