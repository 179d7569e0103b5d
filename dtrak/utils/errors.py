"""The exception for errors that the user can resolve."""


class DtrakError(Exception):
    """An error that the user can resolve.

    Args:
        message: what is wrong.
        hint: how to resolve it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
