"""``python -m benchmarks.damping``: which λ predicts retraining best on the demo, for each method.

A small linear datamodeling score (LDS): the demo's fine-tuning is repeated on random halves of its
training set; a method predicts the loss that each half leaves on a query as −Σ of the scores of
the half's images; the LDS is Spearman's correlation of prediction and truth over the halves,
averaged over queries. λ is chosen on the even halves and reported on the odd ones. Finished halves
are kept in ``workspace/demo/truth`` and not trained again.
"""

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from dtrak.attribution import Attributor, Query
from dtrak.config import ROOT, load_study
from dtrak.files import write_npy
from dtrak.methods import METHODS
from dtrak.noise import feature_noise
from dtrak.queries import generate_query
from dtrak.sampling import GenerationSettings
from dtrak.settings import Setting
from dtrak.studies import StudyFolder, half_mask, initial_model
from dtrak.threads import one_thread
from dtrak.training import Run

TIMESTEPS = tuple(range(5, 1000, 20))
GENERATED = 32
POWERS = np.arange(-4, 4.01, 0.5)


def queries(attributor: Attributor) -> list[Query]:
    """Held-out images, then generated ones."""
    table = attributor.table
    heldout = [Query(table.pixels[r], table.records[r].label) for r in range(table.train_size, len(table.records))]
    label = next(iter(attributor.model.classes))
    generated = [generate_query(attributor, GenerationSettings(seed, 50, label)) for seed in range(GENERATED)]
    return heldout + generated


@torch.no_grad()
def losses(model, asked: list[Query]) -> Float[np.ndarray, " q"]:  # type: ignore[no-untyped-def]
    """The training loss of each query, over fixed timesteps and keyed noise."""
    result = []
    for query in asked:
        x = model.encode(query.pixels[None])
        noise = torch.from_numpy(feature_noise(1, query.id, [(t, 0) for t in TIMESTEPS], x.shape[1:]))
        steps = torch.tensor(TIMESTEPS)
        classes = model.class_tensor([query.label] * len(TIMESTEPS))
        prediction = model.predict(model.add_noise(x, noise, steps), steps, classes)
        result.append((prediction - noise).square().mean().item())
    return np.array(result)


def retrain(number: int) -> None:
    """Fine-tune on one half and keep the losses of all queries."""
    folder = StudyFolder(load_study("demo"))
    path = folder.root / "truth" / f"half-{number:03d}.npy"
    if path.exists():
        return
    with one_thread():
        asked = queries(Attributor(folder))
        model, table = initial_model(folder), folder.table
        latents = model.encode(table.pixels[: table.train_size])
        classes = model.class_tensor([r.label for r in table.records[: table.train_size]])
        weights = torch.from_numpy(half_mask(table.train_ids, number)).float()
        Run(model, folder.study.training, latents, table.train_ids, classes, weights=weights).train()
        write_npy(path, losses(model, asked))


def lds(
    scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"], truth: Float[np.ndarray, "m q"]
) -> Float[np.ndarray, " q"]:
    """Spearman's correlation over the halves, for each query."""
    predicted = -masks.astype(float) @ scores.T
    return np.array([spearmanr(predicted[:, i], truth[:, i]).statistic for i in range(scores.shape[0])])


def report(count: int) -> str:
    """The table of the halves that are finished."""
    attributor = Attributor(StudyFolder(load_study("demo")))
    root = attributor.folder.root / "truth"
    numbers = [n for n in range(count) if (root / f"half-{n:03d}.npy").exists()]
    truth = np.stack([np.load(root / f"half-{n:03d}.npy") for n in numbers])
    masks = np.stack([half_mask(attributor.table.train_ids, n) for n in numbers])
    asked = queries(attributor)
    settings = [Setting(method.name) for method in METHODS.values() if method.damping is not None]
    features = [attributor.features(query, settings, by_block=False) for query in asked]
    groups = {"held out": slice(0, -GENERATED), "generated": slice(-GENERATED, None)}
    even = np.array([n % 2 == 0 for n in numbers])
    lines = [
        "# Which λ",
        "",
        f"`python -m benchmarks.damping --halves {count}`: {len(numbers)} fine-tunings of the demo on random halves",
        f"of its training set; {len(asked) - GENERATED} held-out and {GENERATED} generated queries. LDS × 100 over all",
        "halves, at λ = 10^p × mean eigenvalue. Few halves: each number is uncertain by several points.",
        "",
        "| method | queries | " + " | ".join(f"{p:g}" for p in POWERS) + " | chosen on even halves → LDS on odd ones |",
        "|---|---|" + "---|" * (len(POWERS) + 1),
    ]
    for setting in settings:
        method = METHODS[setting.method]
        scores = [
            np.stack(
                [
                    attributor.scores(setting.with_(damping=10.0**p), query, f)[0]
                    for query, f in zip(asked, features, strict=True)
                ]
            )
            for p in POWERS
        ]
        for name, part in groups.items():
            every = [lds(s[part], masks, truth[:, part]).mean() for s in scores]
            chosen = int(np.argmax([lds(s[part], masks[even], truth[even][:, part]).mean() for s in scores]))
            kept = lds(scores[chosen][part], masks[~even], truth[~even][:, part])
            cells = " | ".join(f"{100 * v:.1f}" for v in every)
            lines.append(f"| {method.title} | {name} | {cells} | {POWERS[chosen]:g} → {100 * kept.mean():.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the halves that are missing, then print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--halves", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(retrain, range(arguments.halves)), 1):
            print(f"{done} of {arguments.halves} halves", flush=True)
    text = report(arguments.halves)
    print(text)
    Path(ROOT / "docs" / "damping.md").write_text(text)


if __name__ == "__main__":
    main()
