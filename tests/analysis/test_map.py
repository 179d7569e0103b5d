"""The map: neighbours stay neighbours, it is computed once, and it names every image."""

import numpy as np

from dtrak.analysis.map import layout, map_of, self_influence
from dtrak.analysis.significance import null_of
from dtrak.app.explore import COLOURS, colour_values, group_text
from dtrak.app.figures import map_figure
from dtrak.methods.ranking import Ranking
from dtrak.methods.settings import Setting


def test_groups_stay_together():
    random = np.random.default_rng(0)
    centres = 20 * random.standard_normal((3, 40))
    vectors = np.repeat(centres, 20, axis=0) + random.standard_normal((60, 40))
    places = layout(vectors)
    assert places.shape == (60, 2)
    far = np.linalg.norm(places[:, None] - places[None], axis=2)
    group = np.repeat(np.arange(3), 20)
    nearest = np.argsort(far, axis=1)[:, 1:6]
    assert (group[nearest] == group[:, None]).mean() > 0.95
    np.testing.assert_array_equal(layout(vectors), places)
    assert layout(vectors[:3]).shape == (3, 2)


def test_a_map_is_computed_once(attributor, monkeypatch):
    first = map_of(attributor, "features")
    assert first.rows.tolist() == list(range(attributor.table.train_size))
    monkeypatch.setattr("dtrak.analysis.map.layout", None)
    np.testing.assert_array_equal(map_of(attributor, "features").places, first.places)
    monkeypatch.undo()
    monkeypatch.setattr("dtrak.analysis.map.MOST", 6)
    assert len(map_of(attributor, "images").rows) == 6


def test_colours_and_groups(attributor):
    found, setting = map_of(attributor, "features"), Setting("dtrak")
    own = self_influence(attributor, setting)
    assert ((own >= 0) & (own < 1)).all()
    scores = np.arange(attributor.table.train_size, dtype=float)
    extras = {"self-influence": own, "hubness": null_of(attributor, setting)}
    for colour in COLOURS:
        values = colour_values(colour, attributor.table, found, scores, extras.get(colour))
        assert len(values) == len(found.rows)
        figure = map_figure(found, attributor.table, values, COLOURS[colour])
        assert sum(len(trace.x) for trace in figure.data) == len(found.rows)
    answer = Ranking(setting, 0.3, "", attributor.table, scores)
    text = group_text(attributor.table, [12, 13], answer)
    assert text.startswith("2 images (")
    assert "27 % of the positive scores by D-TRAK, and are 14 %" in text
    assert answer.positive == scores.sum()
