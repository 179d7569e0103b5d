"""Durations, sizes and shares in words, and sizes out of words."""

from pydantic import ByteSize, TypeAdapter, ValidationError

from dtrak.utils.errors import DtrakError


def in_words(seconds: float) -> str:
    """A duration to one or two digits."""
    for limit, unit, of in (
        (90, 1.0, "s"),
        (5400, 60.0, "min"),
        (48 * 3600, 3600.0, "h"),
        (60 * 86400, 86400.0, "days"),
    ):
        if seconds < limit:
            return f"{seconds / unit:.2g} {of}" if seconds / unit < 10 else f"{seconds / unit:.0f} {of}"
    return f"{seconds / 86400 / 365:.1f} years" if seconds > 400 * 86400 else f"{seconds / 86400:.0f} days"


def size_in_words(count: float) -> str:
    """Bytes to two or three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percent(share: float, digits: int = 0) -> str:
    """A share of 1 in hundredths."""
    return f"{100 * share:.{digits}f} %"


def parse_size(text: str, name: str) -> float:
    """Bytes: a positive number, or one with TB, GB, MB or kB.

    Args:
        name: of the setting, for the message.

    Raises:
        DtrakError: it is neither.
    """
    try:
        found = TypeAdapter(ByteSize).validate_python(text.strip())
    except ValidationError:
        found = ByteSize(0)
    if found <= 0:
        raise DtrakError(f"{name} is '{text}'.", hint="Write something like 4GB or 500MB.")
    return float(found)
