"""Settings from environment variables."""

import os
from pathlib import Path

from pydantic import BaseModel, ByteSize, Field, ValidationError

from dtrak.utils.errors import DtrakError

PREFIX = "DTRAK_"


class Environment(BaseModel):
    """What ``DTRAK_WORKSPACE``, ``DTRAK_CONFIGS``, ``DTRAK_IPTC`` and ``DTRAK_MEMORY`` say.

    Attributes:
        workspace: the folder in which studies are built; default ``workspace`` in the current folder.
        configs: the folder of study configurations; default the one shipped with dtrak.
        iptc: whether downloaded images carry IPTC's fields for generated images.
        memory: bytes that a decomposition of the kernel may use, such as "4GB".
    """

    workspace: Path = Path("workspace")
    configs: Path | None = None
    iptc: bool = True
    memory: ByteSize = Field(ByteSize(4_000_000_000), gt=0)


def environment() -> Environment:
    """The settings as they are now; empty variables count as not set.

    Raises:
        DtrakError: a value is impossible.
    """
    names = {name: f"{PREFIX}{name.upper()}" for name in Environment.model_fields}
    try:
        return Environment.model_validate({k: os.environ[v].strip() for k, v in names.items() if os.environ.get(v)})
    except ValidationError as error:
        name = names[str(error.errors()[0]["loc"][0])]
        raise DtrakError(f"{name} '{os.environ[name]}' is not possible.", hint="Use a value such as 4GB.") from error
