"""Messages on standard error."""

import logging
import os

from dtrak.utils.progress import console

errors = console
NOT_OURS = ("torchao", "torch.utils._pytree")  # log what concerns their developers, while they are imported


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), markup=False, style="yellow" if record.levelno > logging.INFO else None)


def show_messages() -> None:
    """Print the library's log messages on standard error, and of others only errors."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in NOT_OURS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger = logging.getLogger("dtrak")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Messages()]
    logger.propagate = False
