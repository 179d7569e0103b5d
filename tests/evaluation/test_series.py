"""One picture with more and more sources removed: what is removed, what is stored, and when it still holds."""

from dataclasses import replace

import numpy as np
from PIL import Image

from dtrak.app.example import first_example, home_example, write_example
from dtrak.evaluation.removal import Removal, drawn
from dtrak.evaluation.series import load_series, removal_series
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor


def test_the_series_is_shown_on_home(tiny, source, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(source))
    attributor = Attributor(tiny)
    query, setting = first_example(attributor)
    found = removal_series(attributor, query, setting, Local(1))
    assert [one.removed for one in found] == [0, 1, 4]  # of 14 images
    root, without, text = load_series(tiny, query.settings)
    assert without == found
    assert text == "dtrak"
    scores, _ = attributor.scores(setting, query, attributor.features(query, [setting]))
    top = [tiny.table.train_ids[row] for row in np.argsort(-scores)[:4]]
    (expected,) = drawn(tiny, Removal.of(tiny, top, None, None), [query.settings])
    with Image.open(root / found[2].sources) as image:
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert load_series(tiny, replace(query.settings, seed=99)) is None
    write_example(tiny)
    shown = home_example("tiny")
    assert [one.count for one in shown.series] == [0, 1, 4]
    assert shown.series[2].sources.exists()
    assert "unrelated images" in shown.verdict
    assert shown.tiles[0]["id"] == top[0]
