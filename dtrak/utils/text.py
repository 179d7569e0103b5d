"""Formatting of durations, sizes and shares, and parsing of sizes."""

from pydantic import ByteSize, TypeAdapter, ValidationError

from dtrak.utils.errors import DtrakError


def in_words(seconds: float) -> str:
    """A duration with its unit, to about two digits."""
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
    """A number of bytes with its unit (powers of 1000), to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percent(share: float, digits: int = 0) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * share:.{digits}f} %"


def parse_size(text: str, name: str) -> float:
    """Parse a size in bytes: a positive number, optionally with the unit TB, GB, MB or kB.

    Args:
        name: name of the option or variable, for the error message.

    Raises:
        DtrakError: the text is not a positive size.
    """
    try:
        found = TypeAdapter(ByteSize).validate_python(text.strip())
    except ValidationError:
        found = ByteSize(0)
    if found <= 0:
        raise DtrakError(f"{name} '{text}' is not a size.", hint="Use a value such as 4GB or 500MB.")
    return float(found)
