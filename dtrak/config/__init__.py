"""Study configuration, and the folders of configurations and workspaces."""

from dtrak.config.features import (
    LAST,
    RANDOMISED,
    TIMES,
    FeatureConfig,
    OutputName,
    ProjectionKind,
    Split,
    timestep_list,
)
from dtrak.config.study import DataConfig, ExampleConfig, ModelConfig, Study, TrainingConfig, TruthConfig
from dtrak.config.workspace import (
    ROOT,
    SOURCE_FILE,
    configs,
    load_study,
    study_names,
    study_source,
    workspace,
)

__all__ = [
    "LAST",
    "RANDOMISED",
    "ROOT",
    "SOURCE_FILE",
    "TIMES",
    "DataConfig",
    "ExampleConfig",
    "FeatureConfig",
    "ModelConfig",
    "OutputName",
    "ProjectionKind",
    "Split",
    "Study",
    "TrainingConfig",
    "TruthConfig",
    "configs",
    "load_study",
    "study_names",
    "study_source",
    "timestep_list",
    "workspace",
]
