"""The one exception that users meet: what is wrong, and the way out."""


class DtrakError(Exception):
    """Something the user can act on.

    Args:
        message: what is wrong, naming the thing.
        hint: what to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
