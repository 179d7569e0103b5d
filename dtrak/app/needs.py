"""What an unbuilt study needs: data, model, time and disk space."""

import functools

from dtrak.build.plan import DEVICES, Estimate, estimate
from dtrak.config import load_study
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.text import in_words, size_in_words

SHOWN = (DEVICES[0], DEVICES[1])


def needs_in_words(folder: StudyFolder) -> str:
    """Markdown: where its data and model come from, and the expected time and disk space of each step."""
    study, data = folder.study, folder.study.data
    lines = []
    if not (folder.data / "report.json").exists():
        where = [f"`{study.resolve(data.path)}`"] if data.path and data.kind != "hub" else []
        where += [f"`{data.hub or data.path}` on the Hugging Face Hub"] if data.hub or data.kind == "hub" else []
        lines.append(f"Images are read from {', or else from '.join(where)}.")
    if study.model.hub:
        lines.append(f"The model is `{study.model.hub}` on the Hugging Face Hub; `prepare` downloads it.")
    try:
        found = _estimate(study.name, (folder.data / "report.json").exists())
    except DtrakError as reason:
        return "  \n".join([*lines, f"{reason.message} {reason.hint}"])
    lines.append(f"Estimates for {found.images:,} images (docs/scale.md explains them):")
    header = f"| | disk | {' | '.join(device.title for device in SHOWN)} |\n|---|--:|{'--:|' * len(SHOWN)}"
    rows = [
        f"| {step.title} | {size_in_words(step.bytes)} | "
        + " | ".join(in_words(step.seconds(device, study)) for device in SHOWN)
        + " |"
        for step in found.steps
    ]
    return "\n\n".join([*lines, "\n".join([header, *rows])])


@functools.lru_cache(16)
def _estimate(name: str, prepared: bool) -> Estimate:  # takes a second or two; constant until the data are prepared
    return estimate(StudyFolder(load_study(name)))
