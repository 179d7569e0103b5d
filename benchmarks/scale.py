"""``python -m benchmarks.scale``: writes the tables of estimates in docs/scale.md."""

import torch

from benchmarks.report import table, write_table
from dtrak.build.plan import DEVICES, estimate, passes_of, quantised_numbers
from dtrak.config import TrainingConfig, load_study
from dtrak.models.families import FAMILIES, loader_of
from dtrak.models.lora import with_lora
from dtrak.study.folder import StudyFolder
from dtrak.utils.text import in_words, size_in_words

STUDIES = ("cifar2", "cifar10", "celeba", "artbench2", "artbench5")


def studies_table() -> str:
    """A Markdown table with one row for each step of each study."""
    found = [estimate(StudyFolder(load_study(name))) for name in STUDIES]
    sizes = ["| study | images | parameters | of them tuned | forward | backward |", "|---|--:|--:|--:|--:|--:|"]
    times = [
        f"| study | step | operations | disk | {' | '.join(d.title for d in DEVICES)} |",
        f"|---|---|--:|--:|{'--:|' * len(DEVICES)}",
    ]
    for one in found:
        p = one.passes
        sizes.append(
            f"| {one.study.name} | {one.images:,} | {p.parameters:,} | {p.tuned:,} "
            f"| {p.forward / 1e9:.1f} G | {p.backward / 1e9:.1f} G |"
        )
        for step in one.steps:
            seconds = " | ".join(in_words(step.seconds(device, one.study)) for device in DEVICES)
            times.append(
                f"| {one.study.name} | {step.title} | {step.operations:.1e} | {size_in_words(step.bytes)} | {seconds} |"
            )
    return "\n".join([*sizes, "", *times]) + "\n"


def families_rows() -> list[tuple[str, ...]]:
    """The text-to-image families at their usual sizes, with frozen weights of 2 bytes and a LoRA of rank 16."""
    rows = []
    for kind, (_, title) in FAMILIES.items():
        loader = loader_of(None, kind)
        with torch.device("meta"):
            blank = loader.blank(loader.resolution, None)
            with_lora(blank.network, TrainingConfig(method="lora", lora_modules=loader.lora_modules))
            passes = passes_of(blank, 2)
        saved = quantised_numbers(blank.network) if kind != "StableDiffusionPipeline" else 0
        sizes = (passes.memory.network, passes.memory.smallest, passes.memory.smallest - saved)
        rows.append((
            title, str(loader.resolution), f"{passes.parameters / 1e9:.1f} G", f"{passes.tuned / 1e6:.0f} M",
            f"{passes.forward / 1e12:.1f} T", f"{passes.backward / 1e12:.1f} T",
            *map(size_in_words, sizes),
        ))  # fmt: skip
    return rows


def write_families() -> None:
    """Write the families' table to docs/scale.md."""
    numbers = ("family", "resolution", "weights", "of the LoRA", "forward", "backward")
    memory = ("GPU memory", "with gradient checkpointing", "and 8-bit weights")
    write_table("scale.md", "python -m benchmarks.scale, families", table(families_rows(), numbers + memory))


if __name__ == "__main__":
    write_table("scale.md", "python -m benchmarks.scale", studies_table())
    write_families()
