"""Scores of another tool: read from CSV, JSON and our own ledger, and refused where they do not fit."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from dtrak.methods.imported import import_scores
from dtrak.methods.query import Query
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from index_builder.cli import app


def test_csv_and_json_give_the_same_scores(attributor):
    table = attributor.table
    query = Query(np.asarray(table.pixels[0]))
    ids = table.train_ids
    rows = [{"output": "mine", "work": ids[2], "score": 1.5}, {"output": "mine", "work": ids[4], "score": -2}]
    left = [{"output": "other", "work": ids[0], "score": 1}, {"output": "mine", "work": "unattributed", "score": 1}]
    lines = ["output,work,score", *(f"{r['output']},{r['work']},{r['score']}" for r in rows + left)]
    twice = rows + [{**row, "output": "the same image"} for row in rows]
    for content in ("\n".join(lines), "\ufeff" + json.dumps({"rows": rows + left}), json.dumps(twice + left)):
        known = {"mine": query.id, "the same image": query.id}.get
        assert import_scores(attributor.folder, content, known) == (1, 2)
        scores, damping = attributor.scores(Setting("imported"), query, {})
        assert damping is None
        assert scores[2] == 1.5
        assert scores[4] == -2
        assert np.count_nonzero(scores) == 2
    with pytest.raises(DtrakError, match="were imported for this image"):
        attributor.scores(Setting("imported"), Query(np.asarray(table.pixels[1])), {})


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", "a,b\n1,2", '{"rows": [{"output": "x"}]}', "output,work,score\na,b,nan"]
)
def test_other_content_is_refused(attributor, content):
    with pytest.raises(DtrakError):
        import_scores(attributor.folder, content, {"a": "query:a"}.get)


def test_on_the_command_line(tiny, source, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("output,work,score\nnothing,nothing,1\n")
    result = CliRunner().invoke(app, ["import-scores", str(source / "tiny.yaml"), str(path)])
    assert isinstance(result.exception, DtrakError)
