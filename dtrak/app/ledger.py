"""The ledger as a file: one row per output and work, with shares that sum to 1 with the unattributed part.

``LedgerFile`` is the published schema: it validates files; ``dtrak ledger STUDY --schema`` prints it as JSON Schema.
"""

import csv
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dtrak.analysis.ledger import Ledger
from dtrak.app.exports import no_formula
from dtrak.app.runs import Run
from dtrak.data import Records

TOLERANCE = 1e-6
UNATTRIBUTED = "unattributed"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LedgerRow(_Row):
    """A work's share in an output; ``work`` and ``holder`` are "unattributed" for what nobody is credited with."""

    output: str = Field(description="id of the generated image")
    work: str = Field(description="id of the training image")
    holder: str = Field(description="its creator")
    licence: str
    share: float = Field(ge=0, le=1)


class Output(_Row):
    """A generated image: what it was made with, and the shares of its creators with their intervals."""

    id: str
    settings: dict[str, object] | None
    holders: dict[str, tuple[float, float, float]] = Field(description="share, and 95 % interval, by creator")


class LedgerFile(_Row):
    """Shares of works in outputs. The shares of each output sum to 1."""

    format: Literal["dtrak-ledger-1"] = "dtrak-ledger-1"
    study: str
    model: str = Field(description="fingerprint of the model")
    method: str
    measured: str = Field(description="measured reliability of the method, as a sentence")
    fingerprint: str = Field(description="of the features that the scores were computed from")
    outputs: list[Output]
    rows: list[LedgerRow]

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "LedgerFile":
        sums = {output.id: 0.0 for output in self.outputs}
        for row in self.rows:
            if row.output not in sums:
                raise ValueError(f"row for '{row.output}', which is not among the outputs")
            sums[row.output] += row.share
        wrong = [name for name, total in sums.items() if abs(total - 1) > TOLERANCE]
        if wrong:
            raise ValueError(f"the shares of {', '.join(wrong)} do not sum to 1")
        return self


def rows_of(run: Run, found: Ledger, records: Records, scores: Float[np.ndarray, " n"]) -> list[LedgerRow]:
    """A picture's rows: each creator's credit, divided among their images in proportion to the positive scores."""
    positive = np.maximum(scores, 0)
    names, codes = records.grouped("creator")
    rows = []
    for credit in found.credits:
        mine = np.flatnonzero(codes == names.index(credit.creator))
        mass = positive[mine].sum()
        if not credit.credited or not mass:
            continue
        for row in mine[np.argsort(-positive[mine], kind="stable")].tolist():
            if positive[row]:
                record, share = records[row], float(credit.credited * positive[row] / mass)
                told = {"holder": credit.creator, "licence": record.licence or "", "share": share}
                rows.append(LedgerRow(output=run.id, work=record.id, **told))
    left = 1 - sum(row.share for row in rows)
    return [
        *rows,
        LedgerRow(output=run.id, work=UNATTRIBUTED, holder=UNATTRIBUTED, licence="", share=min(max(left, 0.0), 1.0)),
    ]


def ledger_file(
    study: str, model: str, method: str, measured: str, fingerprint: str, runs: Sequence[Run], each: Sequence[Ledger],
    records: Records, scores: Sequence[Float[np.ndarray, " n"]],
) -> LedgerFile:  # fmt: skip
    """The ledger of some pictures.

    Args:
        each: the ledger of each picture.
        records: of the training images.
        scores: of the training images, one array per picture.
    """
    outputs = [
        Output(id=run.id, settings=run.settings.as_dict() if run.settings else None,
               holders={c.creator: (c.credited, c.low, c.high) for c in one.credits})
        for run, one in zip(runs, each, strict=True)
    ]  # fmt: skip
    rows = [
        row for run, one, values in zip(runs, each, scores, strict=True) for row in rows_of(run, one, records, values)
    ]
    return LedgerFile(study=study, model=model, method=method, measured=measured, fingerprint=fingerprint,
                      outputs=outputs, rows=rows)  # fmt: skip


def as_json(found: LedgerFile) -> bytes:
    """The file as JSON."""
    return (found.model_dump_json(indent=1) + "\n").encode()


def as_csv(found: LedgerFile) -> bytes:
    """The rows as CSV, each with the method, its reliability and the model."""
    buffer = io.StringIO()
    columns = [*LedgerRow.model_fields, "method", "measured", "model", "fingerprint"]
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    shared = {name: no_formula(getattr(found, name)) for name in columns[-4:]}
    for row in found.rows:
        told = {k: no_formula(v) if isinstance(v, str) else f"{v:.6g}" for k, v in row.model_dump().items()}
        writer.writerow({**told, **shared})
    return buffer.getvalue().encode("utf-8-sig")
