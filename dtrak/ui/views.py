"""View models: what a page shows, worked out without the page."""

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dtrak.attribution import Attribution, Scored
from dtrak.data import Record, Table

TILE = 128  # pixels on the screen


def data_url(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> str:
    """A picture as a data URL; small ones are enlarged without blurring."""
    return "data:image/png;base64," + base64.b64encode(enlarged_png(pixels, size)).decode()


def enlarged_png(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> bytes:
    """A PNG of about ``size`` pixels; small images are enlarged by a whole factor, without blurring."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width < size:
        image = image.resize((image.width * -(-size // image.width),) * 2, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def describe(record: Record) -> str:
    """A training image in words, for those who cannot see it."""
    by = f", by {record.creator}" if record.creator else ""
    return f"Training image: {record.caption or record.id}{by}"


def tiles(scored: list[Scored], table: Table) -> list[dict[str, Any]]:
    """What the gallery draws: one entry a training image, strongest first."""
    strongest = max((abs(s.score) for s in scored), default=1.0)
    return [
        {
            "id": s.record.id,
            "place": place,
            "src": data_url(table.pixels[table.rows[s.record.id]]),
            "alt": describe(s.record),
            "score": format_score(s.score),
            "share": abs(s.score) / strongest,
            "sign": "+" if s.score > 0 else "−",
            "caption": s.record.caption or s.record.id,
            "creator": s.record.creator or "unknown creator",
            "licence": s.record.licence,
        }
        for place, s in enumerate(scored, 1)
    ]


def format_score(score: float) -> str:
    """Three significant digits, always signed, with a real minus."""
    return f"{score:+.3g}".replace("-", "−")


@dataclass(frozen=True)
class Share:
    """A group's part of the positive mass.

    Attributes:
        share: of the sum of all positive scores.
        expected: the group's share of the training set.
    """

    name: str
    share: float
    expected: float
    count: int


def shares(records: list[Record], scores: Float[np.ndarray, " n"], key: str) -> list[Share]:
    """Positive mass by creator or label, largest first; sums to 1 where any score is positive."""
    mass: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for record, score in zip(records, scores, strict=True):
        name = getattr(record, key) or "unknown"
        mass[name] += max(float(score), 0.0)
        counts[name] += 1
    total = sum(mass.values()) or 1.0
    found = [Share(name, mass[name] / total, counts[name] / len(records), counts[name]) for name in mass]
    return sorted(found, key=lambda s: (-s.share, s.name))


def effective_number(scores: Float[np.ndarray, " n"]) -> float:
    """How many equal contributors the positive mass amounts to: exp of its entropy."""
    positive = scores[scores > 0]
    if not positive.size:
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def z_score(attribution: Attribution) -> float:
    """How many standard deviations of all scores the top proponent lies above their mean."""
    spread = float(attribution.scores.std()) or 1.0
    return (float(attribution.scores.max()) - float(attribution.scores.mean())) / spread


def default_power(damping: float) -> float:
    """A damping as a power of ten, to the quarter that the slider steps by."""
    return round(float(np.log10(damping)) * 4) / 4
