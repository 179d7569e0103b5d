"""A share of a list of tasks, for schedulers that start the same command many times (SLURM arrays and others)."""

from dataclasses import dataclass

from dtrak.utils.errors import DtrakError


@dataclass(frozen=True)
class Share:
    """Share ``number`` (from 1) of ``of``.

    Tasks are told apart by their place in the whole list, never among those that are missing: whoever
    runs when, the shares cover everything, and a share that runs twice finds its work done.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read "I/N".

        Raises:
            DtrakError: it is not of that form, or I is not from 1 to N.
        """
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise DtrakError(f"'{text}' is no share.", hint="Write --shard 2/8 for the second of eight.")

    def has(self, place: int) -> bool:
        """Whether the task at a place of the whole list, from 0, is of this share."""
        return place % self.of == self.number - 1
