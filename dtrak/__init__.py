"""Which training images shaped this generated image?

>>> import dtrak
>>> study = dtrak.open_study("demo").build()
>>> picture = study.generate(seed=100064, prompt="unamused face, OpenMoji")
>>> study.attribute(picture, method="dtrak").proponents

Names load when they are used: importing dtrak takes no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrak.api import Generated, Study, StudyConfig, open_study
    from dtrak.evaluation.lds import lds, lds_with_interval
    from dtrak.linalg.kernel import Kernel
    from dtrak.methods.features import Features
    from dtrak.methods.ranking import Ranking, Scored
    from dtrak.methods.settings import Setting
    from dtrak.utils.errors import DtrakError

__version__ = "0.2.0"
_WHERE = {
    "Generated": "dtrak.api", "Study": "dtrak.api", "StudyConfig": "dtrak.api",
    "open_study": "dtrak.api", "lds": "dtrak.evaluation.lds", "lds_with_interval": "dtrak.evaluation.lds",
    "Kernel": "dtrak.linalg.kernel", "Features": "dtrak.methods.features", "Ranking": "dtrak.methods.ranking",
    "Scored": "dtrak.methods.ranking", "Setting": "dtrak.methods.settings", "DtrakError": "dtrak.utils.errors",
}  # fmt: skip
__all__ = [
    "DtrakError",
    "Features",
    "Generated",
    "Kernel",
    "Ranking",
    "Scored",
    "Setting",
    "Study",
    "StudyConfig",
    "lds",
    "lds_with_interval",
    "methods",
    "open_study",
]


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module("dtrak.methods")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'dtrak' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
