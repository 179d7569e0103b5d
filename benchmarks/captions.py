"""``python -m benchmarks.captions``: which part of a caption does the demo's model use?

The loss on training images with their own caption, and with another image's expression or style in its place.
"""

import numpy as np

from benchmarks.report import publish
from dtrak.config import load_study
from dtrak.evaluation.subsets import query_losses
from dtrak.execution.threads import task_threads
from dtrak.methods.query import Query
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.noise import keyed_generator

IMAGES = 160


def others(values: list[str], random: np.random.Generator) -> list[str]:
    """For each value one of another image that differs."""
    return [str(random.choice([other for other in values if other != value])) for value in values]


def main() -> None:
    """Measure, print the table and write it to docs/demo.md."""
    folder = StudyFolder(load_study("demo"))
    model, table, random = load_study_model(folder), folder.table, keyed_generator("captions", 0, "")
    rows = random.permutation(table.train_size)[:IMAGES].tolist()
    parts = [table.records[row].caption.rsplit(", ", 1) for row in rows]
    expressions, styles = [a for a, _ in parts], [b for _, b in parts]
    captions = {
        "its own": zip(expressions, styles, strict=True),
        "another expression": zip(others(expressions, random), styles, strict=True),
        "another style": zip(expressions, others(styles, random), strict=True),
    }
    told = {name: [f"{a}, {b}" for a, b in pairs] for name, pairs in captions.items()} | {"none": [""] * IMAGES}
    with task_threads():  # the noise is keyed by the pixels, so it is the same for every caption
        found = {
            name: query_losses(
                model, [Query(table.pixels[row], caption) for row, caption in zip(rows, names, strict=True)]
            ).mean(1)
            for name, names in told.items()
        }
    own, lines = found["its own"], []
    for name, values in found.items():
        more = 100 * (values - own) / own.mean()
        gain = f"{more.mean():.1f} % (± {more.std() / len(more) ** 0.5:.1f})" if name != "its own" else ""
        lines.append((name, f"{values.mean():.4f}", gain))
    header = ("caption", "loss", "more than with its own")
    publish("python -m benchmarks.captions", lines, header, "demo.md", f" {IMAGES} training images.")


if __name__ == "__main__":
    main()
