"""Study configuration, and the folders of configurations and workspaces."""

from dtrak.config.study import (
    LAST,
    RANDOMISED,
    TIMES,
    DataConfig,
    FeatureConfig,
    ModelConfig,
    OutputName,
    ProjectionKind,
    Split,
    Study,
    TrainingConfig,
    TruthConfig,
    timestep_list,
)
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
