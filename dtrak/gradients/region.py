"""A part of an image: which training images shaped *this part*? The output function then looks at this part alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtrak.utils.errors import DtrakError

if TYPE_CHECKING:  # pages read regions before torch is loaded
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A rectangle; coordinates are shares of the image's width and height, from its top left corner.

    Raises:
        DtrakError: it is empty, or not inside the image.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            raise DtrakError(f"'{self.text}' is no part of an image.", hint="Give left,top,right,bottom from 0 to 1.")

    @property
    def text(self) -> str:
        """For URLs: "0.25,0,0.75,0.5"."""
        return ",".join(f"{value:.3g}" for value in (self.left, self.top, self.right, self.bottom))

    @classmethod
    def parse(cls, text: str) -> Region:
        """The inverse of :attr:`text`.

        Raises:
            DtrakError: the text is not a part of an image.
        """
        try:
            left, top, right, bottom = map(float, text.split(","))
        except ValueError:
            raise DtrakError("This is no part of an image.", hint="Give left,top,right,bottom from 0 to 1.") from None
        return cls(left, top, right, bottom)

    def mask(self, shape: Sequence[int]) -> Float[Tensor, "h w"]:
        """How much of each place of the network's input lies inside, from 0 to 1.

        Args:
            shape: height and width of the input, such as the grid of a VAE's latents.
        """
        rows = _covered(self.top, self.bottom, shape[0])
        columns = _covered(self.left, self.right, shape[1])
        return rows[:, None] * columns[None, :]


def _covered(start: float, stop: float, count: int) -> Float[Tensor, " places"]:
    import torch

    edges = torch.arange(count + 1, dtype=torch.float64)
    inside = (edges[1:].clamp(max=stop * count) - edges[:-1].clamp(min=start * count)).clamp(min=0)
    return inside.float()
