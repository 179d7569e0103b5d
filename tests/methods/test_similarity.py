"""Baselines: kernel ridge by its formula, labels and creators by their shares."""

import numpy as np
import pytest

from dtrak.methods.embeddings import pixel_vectors
from dtrak.methods.query import load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError


@pytest.mark.parametrize("name", ["pixel-ridge", "pixel-ridge-label", "pixel-rbf", "pixel-rbf-label"])
def test_a_kernel_baseline_is_kernel_ridge_regression(attributor, query, name):
    table = attributor.table
    rows = pixel_vectors(np.asarray(table.pixels[: table.train_size])).astype(float)
    x = pixel_vectors(query.pixels[None])[0].astype(float)
    labels = [record.label for record in table.records[: table.train_size]]
    squares = [((a - b) ** 2).sum() for i, a in enumerate(rows) for b in rows[i + 1 :]]

    def kernel(a, b, label_a, label_b):
        value = np.exp(-((a - b) ** 2).sum() / np.median(squares)) if "rbf" in name else a @ b
        return value * (label_a == label_b) if name.endswith("label") else value

    count = len(rows)
    gram = np.array([[kernel(rows[i], rows[j], labels[i], labels[j]) for j in range(count)] for i in range(count)])
    seen = np.array([kernel(x, rows[j], query.label, labels[j]) for j in range(count)])
    values = np.linalg.eigvalsh(gram)
    damping = 0.5 * values[values > 1e-10 * values.max()].mean()
    expected = np.linalg.solve(gram + damping * np.eye(count), seen)
    scores, used = attributor.scores(Setting(name, damping=0.5), query, {})
    assert used == 0.5
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.baseline])
def test_many_queries_are_scored_as_one_by_one(attributor, name):
    asked, method = load_query_set(attributor.folder), METHODS[name]
    matrices = method.score_matrices(attributor, Setting(name), asked, [0.1, 1.0])
    assert len(matrices) == (1 if method.damping is None else 2)
    setting = Setting(name) if method.damping is None else Setting(name, damping=1.0)
    alone = np.stack([attributor.scores(setting, query, {})[0] for query in asked.queries])
    np.testing.assert_allclose(matrices[-1], alone, rtol=1e-3, atol=1e-5 * np.abs(alone).max())


def test_labels_and_creators_are_scored_by_their_share(attributor, query):
    records = attributor.table.records[: attributor.table.train_size]
    scores, _ = attributor.scores(Setting("same-label"), query, {})
    assert scores.tolist() == [float(record.label == "round") for record in records]
    of_label = [record.creator for record in records if record.label == "round"]
    scores, _ = attributor.scores(Setting("same-creator"), query, {})
    np.testing.assert_allclose(scores, [of_label.count(record.creator) / len(of_label) for record in records])


def test_a_kernel_has_a_largest_size_and_needs_a_number(attributor, query, monkeypatch):
    monkeypatch.setattr("dtrak.methods.similarity.MOST_ROWS", 5)
    assert "limited to 5" in attributor.why_not("pixel-rbf").message
    with pytest.raises(DtrakError, match="needs a number"):
        attributor.scores(Setting("pixel-ridge", damping="auto"), query, {})
