"""Messages on standard error."""

import logging

from dtrak.utils.progress import console

errors = console


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage(), markup=False, style="yellow" if record.levelno > logging.INFO else None)


def show_messages() -> None:
    """Print the library's log messages on standard error."""
    logger = logging.getLogger("dtrak")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Messages()]
    logger.propagate = False
