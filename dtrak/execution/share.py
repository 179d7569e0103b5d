"""Part I of N of a list of tasks (``--shard I/N``), for schedulers such as SLURM arrays."""

from dataclasses import dataclass

from dtrak.utils.errors import DtrakError


@dataclass(frozen=True)
class Share:
    """Part ``number`` (from 1) of ``of``.

    Tasks are assigned by their position in the full list, not among the missing ones. So the parts cover
    everything in whatever order they run, and a part that runs twice finds its work done.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Parse "I/N".

        Raises:
            DtrakError: the text does not have that form, or I is not in 1 to N.
        """
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise DtrakError(f"Invalid --shard '{text}'.", hint="Use --shard 2/8 for the second of eight parts.")

    def has(self, place: int) -> bool:
        """Whether the task at a position in the full list, from 0, belongs to this part."""
        return place % self.of == self.number - 1
