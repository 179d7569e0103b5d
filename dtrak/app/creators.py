"""The creator statement: the influence of a creator's images on the saved pictures, against their share of the data.

Scores of two pictures have no common unit, so the positive scores of each picture are divided by their sum. A
creator's total is the sum over their images; the weight per image is the total divided by the creator's share of the
data. Totals favour creators of many images, means creators of few, so both are shown.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.analysis.ledger import creators_of, shares_by
from dtrak.app.exports import template
from dtrak.data import Records
from dtrak.evaluation.counterfactual import mean_with_interval
from dtrak.methods.query import load_query_set
from dtrak.methods.ranking import Scored
from dtrak.methods.subsets import load_subsets
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.text import percent

LEAST_PICTURES = 10  # below, an interval over pictures is not reported as significant


@dataclass(frozen=True)
class Standing:
    """The influence of one creator's images over some pictures.

    Attributes:
        images: number of their training images.
        share_of_data: their share of the training images.
        total: their images' share of the positive scores, mean over pictures.
        per_image: ``total / share_of_data``; 1 is an average image.
        low, high: 95 % bootstrap interval over the pictures.
        pictures: number of pictures.
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


def standings(records: Records, scores: Sequence[Float[np.ndarray, " n"]]) -> list[Standing]:
    """All creators, the largest total first.

    Args:
        records: of the training images.
        scores: of the training images, one array per picture.
    """
    creators, codes = creators_of(records)
    counts, shares = np.bincount(codes), np.stack([shares_by(len(creators), codes, row) for row in scores])
    found = []
    for place, creator in enumerate(creators):
        count, data = int(counts[place]), float(counts[place] / len(codes))
        total, low, high = mean_with_interval(shares[:, place])
        found.append(
            Standing(creator, count, data, total, low, high, total / data, low / data, high / data, len(scores))
        )
    return sorted(found, key=lambda s: (-s.total, s.creator))


def mean_shares(scores: Sequence[Float[np.ndarray, " n"]]) -> Float[np.ndarray, " n"]:
    """Each training image's share of the positive scores, mean over pictures.

    Args:
        scores: of the training images, one array per picture.
    """
    rows = [np.maximum(row, 0) for row in scores]
    return np.mean([row / (row.sum() or 1.0) for row in rows], axis=0)


def strongest_images(
    records: Records, scores: Sequence[Float[np.ndarray, " n"]], creator: str, count: int
) -> list[Scored]:
    """A creator's images with their mean shares of the positive scores, the largest first.

    Args:
        records: of the training images.
        scores: of the training images, one array per picture.
        count: of images to return at most.
    """
    shares = mean_shares(scores)
    names, codes = records.grouped("creator")
    rows = [row for row in np.argsort(-shares, kind="stable").tolist() if names[codes[row]] == creator]
    return [Scored(records[row], float(shares[row])) for row in rows[:count]]


def sentence(found: Standing) -> str:
    """The statement about one creator, in words."""
    if found.pictures < LEAST_PICTURES:
        few = f"{found.pictures} {'is' if found.pictures == 1 else 'are'} too few"
        compared = f"{few} to say whether that is more or less than an average image"
    elif found.per_image_low > 1:
        compared = "more than an average image"
    elif found.per_image_high < 1:
        compared = "less than an average image"
    else:
        compared = "not significantly different from an average image"
    return (
        f"{found.images} of the training images ({percent(found.share_of_data, 1)}) are by {found.creator}. "
        f"Over {saved_pictures(found.pictures)} they hold {total_in_words(found)} of the positive scores. "
        f"Each of them weighs {per_image_in_words(found)} times an average image: {compared}."
        + (" In brackets: 95 % bootstrap interval over the pictures." if found.pictures > 1 else "")
    )


def saved_pictures(count: int) -> str:
    """The number of pictures, in words."""
    return f"{count} saved picture" + ("" if count == 1 else "s")


def total_in_words(found: Standing) -> str:
    """A creator's total in per cent, with its 95 % interval if there are several pictures."""
    interval = f" ({percent(found.total_low, 1)} to {percent(found.total_high, 1)})" if found.pictures > 1 else ""
    return f"{percent(found.total, 1)}{interval}"


def per_image_in_words(found: Standing) -> str:
    """The weight per image, with its 95 % interval if there are several pictures."""
    interval = f" ({found.per_image_low:.2f} to {found.per_image_high:.2f})" if found.pictures > 1 else ""
    return f"{found.per_image:.2f}{interval}"


def measured_effects(folder: StudyFolder) -> dict[str, str]:
    """What leaving each creator out does to the loss on generated images, in words; empty where it was not measured.

    In per cent of the mean loss, against the mean over creators.
    """
    names, codes = folder.table.train_records.grouped("creator")
    try:
        truth, asked = load_subsets(folder, "creators"), load_query_set(folder)
    except DtrakError:
        return {}
    losses = truth.losses[:, asked.heldout :]
    change = 100 * (losses / losses.mean(0) - 1)
    found = {}
    for mask, row in zip(truth.masks, change, strict=True):
        mean, low, high = mean_with_interval(row)
        found[names[codes[~mask][0]]] = f"{mean:+.1f} % ({low:+.1f} to {high:+.1f})".replace("-", "−")
    return found


def to_json(study: str, method: str, measured: str, found: Standing, pictures: Sequence[dict[str, Any]]) -> bytes:
    """One creator's statement as JSON."""
    content = {
        "study": study, "method": method, "measured": measured, "standing": asdict(found), "pictures": list(pictures)
    }  # fmt: skip
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def to_html(
    study: str, method: str, measured: str, found: Standing, images: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, str]], credit: str,
) -> bytes:  # fmt: skip
    """One creator's statement as a self-contained HTML page.

    Args:
        images: of the creator, each a data URL and a title, the strongest first.
        pictures: that the statement summarises, likewise.
    """
    page = template("statement.html").render(
        study=study, method=method, measured=measured, creator=found.creator, sentence=sentence(found), credit=credit,
        strips=[("Images with the most influence", images), ("Generated pictures in this statement", pictures)],
    )  # fmt: skip
    return page.encode()
