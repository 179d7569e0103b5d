"""``python -m benchmarks.pictures STUDY OUT``: are a study's generated images good, and are they copies?

Generates images for captions drawn from the training images, and writes to OUT: contact sheets, and ``pictures.json``.
A small network trained on real images tells how often the label (the style) and the expression that were asked for are
recognised, beside its accuracy on held-out real images and what histograms of colour alone tell of the label. The
nearest training image of each generated one tells copies: images closer to a training image than the autoencoder's own
reconstructions are.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from dtrak.config import load_study
from dtrak.data import Record
from dtrak.execution.threads import task_threads
from dtrak.models.base import DiffusionModel
from dtrak.models.generation import GenerationSettings
from dtrak.models.loading import load_study_model
from dtrak.models.sampling import generate_all
from dtrak.study.folder import StudyFolder
from dtrak.utils.noise import keyed_generator

BATCH, SHEET = 32, 64
EPOCHS, RATE, SHIFT, TINT = 60, 2e-3, 4, 0.15
Images = UInt8[np.ndarray, "n r r 3"]


class Judge(nn.Module):
    """A small convolutional network with one head per question."""

    def __init__(self, *classes: int):
        super().__init__()
        widths, layers = (3, 32, 64, 128, 192), list[nn.Module]()
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU(),
                       nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]  # fmt: skip
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.heads = nn.ModuleList(nn.Linear(widths[-1] * 16, count) for count in classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of each head, from images of 64×64 in [−1, 1]."""
        found = self.body(x)
        return [head(found) for head in self.heads]


def as_input(pixels: Images) -> Float[Tensor, "n 3 r r"]:
    """Images in [−1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_judge(x: Float[Tensor, "n 3 r r"], answers: list[Int[Tensor, " n"]]) -> Judge:
    """Train on real images, shifted and tinted at random."""
    torch.manual_seed(0)
    judge = Judge(*(int(a.max()) + 1 for a in answers))
    steps = EPOCHS * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        dx, dy = (int(torch.randint(-SHIFT, SHIFT + 1, ())) for _ in range(2))
        shown = F.pad(x[rows], (SHIFT,) * 4, value=1.0)[..., SHIFT + dy :, SHIFT + dx :][
            ..., : x.shape[2], : x.shape[3]
        ]
        shown = shown * (1 + TINT * torch.randn(BATCH, 3, 1, 1)) + TINT * torch.randn(BATCH, 3, 1, 1)
        loss = sum((F.cross_entropy(out, a[rows], label_smoothing=0.1)
                    for out, a in zip(judge(shown), answers, strict=True)), torch.zeros(()))  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def accuracies(judge: Judge, x: Float[Tensor, "n 3 r r"], answers: list[Int[Tensor, " n"]]) -> list[float]:
    """The share of right answers of each head; answers of −1 do not count."""
    found = [torch.cat(part) for part in zip(*(judge(rows) for rows in x.split(128)), strict=True)]
    return [float((out.argmax(1) == a)[a >= 0].float().mean()) for out, a in zip(found, answers, strict=True)]


def by_colour(
    training: Images, labels: Int[np.ndarray, " n"], others: Sequence[tuple[Images, Int[np.ndarray, " m"]]]
) -> list[float]:
    """How often a label follows from histograms of colour alone, for some sets of images: the trivial explanation."""
    rule = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)).fit(histograms(training), labels)
    return [float(rule.score(histograms(images), asked)) for images, asked in others]


def histograms(images: Images) -> Float[np.ndarray, "n bins"]:
    """The share of pixels in eight bins of each channel."""
    bins = images.reshape(len(images), -1, 3) // 32
    return np.stack([[np.mean(row[:, c] == b) for c in range(3) for b in range(8)] for row in bins])


def nearest(images: Images, training: Images) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each image the nearest training image, and the root mean square of their difference in [0, 1]."""
    flat = training.reshape(len(training), -1).astype(np.float32) / 255
    rows, far = [], []
    for image in images.reshape(len(images), -1).astype(np.float32) / 255:
        apart = np.sqrt(np.square(flat - image).mean(1))
        rows.append(int(apart.argmin()))
        far.append(float(apart.min()))
    return np.array(rows), np.array(far)


def expression(record: Record) -> str:
    """A caption without its label: "winking face, Noto" is a winking face."""
    return record.caption.removesuffix(f", {record.label}")


def sheet(images: Images, columns: int = 16) -> Image.Image:
    """Images in rows."""
    side = images.shape[1]
    rows = -(-len(images) // columns)
    found = Image.new("RGB", (columns * side, rows * side), "white")
    for place, pixels in enumerate(images):
        found.paste(Image.fromarray(pixels), (place % columns * side, place // columns * side))
    return found


def draw(model: DiffusionModel, captions: list[str], guidance: float) -> Images:
    """One image for each caption, with seeds 0, 1, …"""
    settings = [GenerationSettings(seed, 50, caption, guidance) for seed, caption in enumerate(captions)]
    return generate_all(model, settings)


def measure(folder: StudyFolder, count: int, guidance: float | None, out: Path) -> dict[str, Any]:
    """Draw, judge and compare; see the module."""
    table, model = folder.table, load_study_model(folder)
    training, heldout = table.records[: table.train_size], table.records[table.train_size :]
    pixels = np.asarray(table.pixels)
    chosen = keyed_generator("pictures", 0, "").choice(table.train_size, count, count > table.train_size)
    asked = [training[row] for row in chosen]
    drawn = draw(model, [record.caption for record in asked], guidance or folder.study.guidance)
    sheet(drawn[:SHEET], 8).save(out / "contact_sheet.png")
    sheet(drawn, 32).save(out / "all.webp", lossless=True)
    labels = {label: i for i, label in enumerate(table.labels)}
    known = {name: i for i, name in enumerate(sorted({expression(r) for r in training}))}

    def answers(records: Any) -> list[Int[Tensor, " n"]]:
        styles = [labels[r.label] for r in records]
        return [torch.tensor(styles), torch.tensor([known.get(expression(r), -1) for r in records])]

    judge = train_judge(as_input(pixels[: table.train_size]), answers(training))
    real = accuracies(judge, as_input(pixels[table.train_size :]), answers(heldout))
    made = accuracies(judge, as_input(drawn), answers(asked))
    size, (of_training, of_heldout, wanted) = (
        table.train_size,
        (answers(records)[0].numpy() for records in (training, heldout, asked)),
    )
    colour = by_colour(pixels[:size], of_training, [(pixels[size:], of_heldout), (drawn, wanted)])
    again = model.decode(model.encode(pixels[: table.train_size]))
    own = np.sqrt(np.square(again.astype(np.float32) - pixels[: table.train_size]).mean((1, 2, 3))) / 255
    limit = float(np.quantile(own, 0.99))
    rows, far = nearest(drawn, pixels[: table.train_size])
    _, far_heldout = nearest(pixels[table.train_size :], pixels[: table.train_size])
    order = np.argsort(far, kind="stable")[:32]
    pairs = np.stack([drawn[order], pixels[rows[order]]], 1).reshape(-1, *drawn.shape[1:])
    sheet(pairs, 16).save(out / "nearest.png")
    return {
        "images": count, "guidance": guidance or folder.study.guidance,
        "label": {"held-out real images": real[0], "generated": made[0]},
        "label by colours alone": {"held-out real images": colour[0], "generated": colour[1]},
        "expression": {"held-out real images": real[1], "generated": made[1]},
        "copies": {"limit": limit, "generated": int((far < limit).sum()), "held-out real images": int(
            (far_heldout < limit).sum())},
        "distance to the nearest training image": {"generated": float(np.median(far)), "held-out real images": float(
            np.median(far_heldout))},
        "asked for the caption of its nearest": float(np.mean([training[r].caption == a.caption for r, a in zip(
            rows, asked, strict=True)])),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--guidance", type=float)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with task_threads():
        found = measure(StudyFolder(load_study(given.study)), given.images, given.guidance, given.out)
    (given.out / "pictures.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
