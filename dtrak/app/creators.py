"""The creator statement: what a creator's images weigh in the kept pictures, against their share of the data.

Scores of two pictures have no common unit, so each picture's positive scores are divided by their sum.
A creator's total in a picture is the sum over their images, and what each image weighs is that total
against the creator's share of the data; sums favour the prolific, means the few, so both are shown.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.app.exports import no_formula, template
from dtrak.data import Record
from dtrak.evaluation.counterfactual import mean_with_interval
from dtrak.utils.text import percent

UNKNOWN = "unknown"
LEAST_PICTURES = 10  # for an interval over pictures to mean something
COLUMNS = ("creator", "images", "share_of_data", "total", "total_low", "total_high", "per_image", "per_image_low",
           "per_image_high", "pictures")  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """One creator over some pictures.

    Attributes:
        share_of_data: their images among all training images.
        total: the share of all positive scores that their images hold, mean over pictures.
        per_image: their images' mean positive score over that of all images: 1 is an average image.
        low, high: 95 % of bootstrap resamples of the pictures.
    """

    creator: str
    images: int
    share_of_data: float
    total: float
    total_low: float
    total_high: float
    per_image: float
    per_image_low: float
    per_image_high: float
    pictures: int


def standings(records: Sequence[Record], scores: Sequence[Float[np.ndarray, " n"]]) -> list[Standing]:
    """All creators, those with the largest total first.

    Args:
        records: of the training images.
        scores: of them, one array a picture.
    """
    names = [record.creator or UNKNOWN for record in records]
    found = []
    for creator in sorted(set(names)):
        mine = np.array([name == creator for name in names])
        shares = [float(mean_shares([row])[mine].sum()) for row in scores]
        data = float(mine.mean())
        total, low, high = mean_with_interval(np.array(shares))
        found.append(
            Standing(
                creator, int(mine.sum()), data, total, low, high, total / data, low / data, high / data, len(scores)
            )
        )
    return sorted(found, key=lambda s: (-s.total, s.creator))


def mean_shares(scores: Sequence[Float[np.ndarray, " n"]]) -> Float[np.ndarray, " n"]:
    """Each training image's share of a picture's positive scores, the mean over pictures."""
    rows = [np.maximum(row, 0) for row in scores]
    return np.mean([row / (row.sum() or 1.0) for row in rows], axis=0)


def sentence(found: Standing) -> str:
    """One creator's standing in plain words."""
    if found.pictures < LEAST_PICTURES:
        few = f"{found.pictures} {'is' if found.pictures == 1 else 'are'} too few"
        compared = f"{few} to say whether that is more or less than an average image"
    elif found.per_image_low > 1:
        compared = "more than an average image"
    elif found.per_image_high < 1:
        compared = "less than an average image"
    else:
        compared = "not told apart from an average image"
    return (
        f"{found.images} of the training images ({percent(found.share_of_data, 1)}) are by {found.creator}. "
        f"Over {kept_pictures(found.pictures)} they hold {total_in_words(found)} of the positive scores. "
        f"Each of them weighs {per_image_in_words(found)} times an average image: {compared}."
        + (" In brackets: 95 % of resamples of the pictures." if found.pictures > 1 else "")
    )


def kept_pictures(count: int) -> str:
    """So many, in words."""
    return f"{count} kept picture" + ("" if count == 1 else "s")


def total_in_words(found: Standing) -> str:
    """A creator's total with its 95 % interval; one picture has none."""
    interval = f" ({percent(found.total_low, 1)} to {percent(found.total_high, 1)})" if found.pictures > 1 else ""
    return f"{percent(found.total, 1)}{interval}"


def per_image_in_words(found: Standing) -> str:
    """What each of a creator's images weighs, with its 95 % interval; one picture has none."""
    interval = f" ({found.per_image_low:.2f} to {found.per_image_high:.2f})" if found.pictures > 1 else ""
    return f"{found.per_image:.2f}{interval}"


def to_csv(found: Sequence[Standing]) -> bytes:
    """All creators, one a row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    for standing in found:
        content = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(standing).items()}
        writer.writerow({**content, "creator": no_formula(standing.creator)})
    return buffer.getvalue().encode("utf-8-sig")


def to_json(study: str, method: str, measured: str, found: Standing, pictures: Sequence[dict[str, Any]]) -> bytes:
    """One creator's statement for programs."""
    content = {
        "study": study, "method": method, "measured": measured, "standing": asdict(found), "pictures": list(pictures)
    }  # fmt: skip
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def to_html(
    study: str, method: str, measured: str, found: Standing, images: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, str]], credit: str,
) -> bytes:  # fmt: skip
    """One creator's statement as a page that stands alone.

    Args:
        images: of the creator, each a data URL and a title, those with the most influence first.
        pictures: that the statement rests on, likewise.
    """

    page = template("statement.html").render(
        study=study, method=method, measured=measured, creator=found.creator, sentence=sentence(found), credit=credit,
        strips=[("Images with the most influence", images), ("Generated pictures in this statement", pictures)],
    )  # fmt: skip
    return page.encode()
