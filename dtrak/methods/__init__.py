"""Attribution methods, their settings, and the attributor that runs one.

``dtrak.methods()`` gives them as a table: a package cannot share its name with a function, so it can be called.
"""

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class _Methods(types.ModuleType):
    def __call__(self) -> "pd.DataFrame":
        """All methods, one row each: name, title, formula, source, what they need."""
        import pandas as pd

        from dtrak.methods.registry import METHODS

        def described(method: Any) -> dict[str, str]:
            return {key: getattr(method, key) for key in ("name", "title", "formula", "source", "needs")}

        return pd.DataFrame([described(method) for method in METHODS.values()]).set_index("name")


sys.modules[__name__].__class__ = _Methods
