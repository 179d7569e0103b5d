"""``python -m benchmarks.scale``: writes the tables of estimates in docs/scale.md."""

from importlib import import_module

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import write_table
from dtrak.build.memory import estimate_memory
from dtrak.build.plan import DEVICES, estimate
from dtrak.config import TrainingConfig, load_study
from dtrak.models import families
from dtrak.models.lora import with_lora
from dtrak.study.folder import StudyFolder
from dtrak.utils.text import in_words, size_in_words

STUDIES = ("cifar2", "cifar10", "celeba", "artbench2", "artbench5")


def table() -> str:
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


def families_table() -> str:
    """A Markdown table of the text-to-image families at their usual sizes, with a LoRA of rank 16."""
    lines = [
        "| family | resolution | weights | of the LoRA | forward | GPU memory | fits cards of |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for kind, (module, title) in families.FAMILIES.items():
        loader, first = import_module(f"{families.__name__}.{module}").LOADER, kind == "StableDiffusionPipeline"
        resolution, recipe = 512 if first else 1024, TrainingConfig(method="lora", lora_modules=loader.lora_modules)
        with torch.device("meta"):
            blank = loader.blank(resolution, None)
            with_lora(blank.network, recipe)
            memory = estimate_memory(blank, 2)
            with FlopCounterMode(display=False) as forward:
                blank.call()
        weights = [p.numel() for p in blank.network.parameters()]
        tuned = sum(p.numel() for p in blank.network.parameters() if p.requires_grad)
        lines.append(
            f"| {title} | {resolution} | {sum(weights) / 1e9:.1f} G | {tuned / 1e6:.0f} M "
            f"| {forward.get_total_flops() / 1e12:.1f} T | {size_in_words(memory.total)} "
            f"| {', '.join(f'{size} GB' for size in memory.cards) or 'none of these'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_table("scale.md", "python -m benchmarks.scale", table())
    write_table("scale.md", "python -m benchmarks.scale, families", families_table())
