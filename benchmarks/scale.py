"""``python -m benchmarks.scale``: writes the table of estimates in docs/scale.md."""

from benchmarks.report import write_table
from dtrak.build.plan import DEVICES, estimate
from dtrak.config import load_study
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


if __name__ == "__main__":
    write_table("scale.md", "python -m benchmarks.scale", table())
