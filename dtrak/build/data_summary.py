"""A draft of the summary of training data that the EU AI Act asks of providers, from what a study knows of its data.

The sections follow the Commission's template for general-purpose models; what a study cannot know is marked.
"""

from collections import Counter
from collections.abc import Iterable

from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_note

ASK = "*to be filled in by the provider*"
MOST = 30  # rows of a table


def data_summary(folder: StudyFolder) -> str:
    """The draft as Markdown.

    Raises:
        DtrakError: the data are not prepared.
    """
    study, table = folder.study, folder.table
    records = table.train_records
    report = read_note(folder.data / "report.json")
    source = study.data.hub or (f"local data, kind '{study.data.kind}'" if study.data.path else study.data.kind)
    marks = report.get("opted_out") or []
    lines = [
        f"# Summary of training data: {study.title or study.name} (draft)", "",
        "## 1. General information", "",
        f"- Provider: {ASK}", f"- Model: fine-tuning '{study.name}' of {_base(folder)}",
        "- Modality: images" + (", with captions" if any(r.caption for r in records) else ""),
        f"- Size: {len(records):,} images, {study.resolution}×{study.resolution} pixels as the model saw them",
        f"- Latest acquisition date: {ASK}",
        "- This summary describes the data of the modification only, not those of the base model.", "",
        "## 2. Data sources", "",
        f"- Source: {source}", f"- Public, private, crawled or of users: {ASK}",
        f"- Credit: {study.data.credit or 'none stated'}", "",
        "Licences:", "", *_counted(r.licence for r in records), "",
        "Creators:", "", *_counted(r.creator for r in records), "",
        "## 3. Processing", "",
        f"- Exact duplicates left out: {len(report.get('duplicates') or [])}",
        f"- Unusable files left out: {len(report.get('refused') or [])}",
        f"- Images with a mark against training (IPTC, PLUS, CAWG, noai): {len(marks)}",
        *(f"  - {mark['id']}: {mark['mark']}" for mark in marks[:MOST]),
        f"- Measures against illegal content: {ASK}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _base(folder: StudyFolder) -> str:
    model = folder.study.model
    return f"'{model.hub or model.base or (model.path.name if model.path else 'a new network')}'"


def _counted(values: Iterable[str]) -> list[str]:
    counted = Counter(value or "not stated" for value in values).most_common()
    rows = [f"| {' '.join(name.replace('|', '/').split())} | {count:,} |" for name, count in counted[:MOST]]
    more = [f"| {len(counted) - MOST} more | |"] if len(counted) > MOST else []
    return ["| name | images |", "|---|--:|", *rows, *more]
