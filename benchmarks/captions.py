"""``python -m benchmarks.captions``: which part of a caption does the demo's model use?

The loss on training images with their own caption, and with another image's expression or style in its place.
"""

import numpy as np
import torch

from benchmarks.report import machine, write_table
from dtrak.config import load_study
from dtrak.execution.threads import task_threads
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.noise import keyed_generator

IMAGES, TIMESTEPS = 160, (100, 250, 400, 550, 700, 850)


@torch.no_grad()
def losses(captions: dict[str, list[str]], rows: list[int], folder: StudyFolder) -> dict[str, np.ndarray]:
    """The loss of each image, averaged over timesteps, with each set of captions and the same noise."""
    model = load_study_model(folder)
    x = model.encode(folder.table.pixels[rows])
    found: dict[str, list[np.ndarray]] = {name: [] for name in captions}
    generator = torch.Generator().manual_seed(0)
    for timestep in TIMESTEPS:
        noise, times = torch.randn(x.shape, generator=generator), torch.full((len(x),), timestep)
        target = model.process.target(x, noise, times)
        for name, names in captions.items():
            predicted = model.predict(model.add_noise(x, noise, times), times, model.condition(names))
            found[name].append((predicted - target).square().flatten(1).mean(1).numpy())
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def main() -> None:
    """Measure, print the table and write it to docs/demo.md."""
    folder = StudyFolder(load_study("demo"))
    random = keyed_generator("captions", 0, "")
    rows = random.permutation(folder.table.train_size)[:IMAGES].tolist()
    own = [folder.table.records[row].caption.rsplit(", ", 1) for row in rows]
    others = [own[i] for i in random.permutation(len(own))]
    captions = {
        "its own": [f"{expression}, {style}" for expression, style in own],
        "another image's expression": [f"{a}, {b}" for (a, _), (_, b) in zip(others, own, strict=True)],
        "another image's style": [f"{a}, {b}" for (a, _), (_, b) in zip(own, others, strict=True)],
        "none": [""] * len(own),
    }
    with task_threads():
        found = losses(captions, rows, folder)
    lines = ["| caption | loss | more than with its own |", "|---|--:|--:|"]
    for name, values in found.items():
        more = values - found["its own"]
        error = more.std() / len(more) ** 0.5
        share = f"{100 * more.mean() / found['its own'].mean():.1f} % (± {100 * error / found['its own'].mean():.1f})"
        lines.append(f"| {name} | {values.mean():.4f} | {share if name != 'its own' else ''} |")
    text = f"{IMAGES} training images at timesteps {', '.join(map(str, TIMESTEPS))}, on {machine()}.\n\n"
    write_table("demo.md", "python -m benchmarks.captions", text + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
