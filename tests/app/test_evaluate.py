"""What the Evaluate and Creators pages and the reliability card say, from numbers that are known."""

from dataclasses import replace

import numpy as np
import pytest

from dtrak.app.evaluate import (
    added,
    best,
    control_rows,
    curves,
    explained_rows,
    family_table,
    interval_text,
    naming_rows,
    naming_texts,
    reliability,
    table_rows,
    verdict,
)
from dtrak.app.evaluation_figures import distance_boxes, lds_bars, lds_curves
from dtrak.evaluation.results import Evaluation, FamilyRow, Naming, Row
from dtrak.methods.settings import Setting

BEHIND = {"generated": 200, "held-out": 32}


def row(setting, mean, low=None, high=None, gain=(0.0, -0.1, 0.1), queries="generated", curve=(0.1, 0.2, 0.05)):
    low, high = mean - 0.02 if low is None else low, mean + 0.02 if high is None else high
    method = setting.split(",")[0]
    return Row(
        method, setting, queries, mean, mean + 0.01, (low, high), gain, gain, "pixel-cos", 0.01, "K = 10, k = 64",
        0.05, mean, 64, 2, (0.1, 1.0), curve,
    )  # fmt: skip


def evaluation(*rows, stale=""):
    return Evaluation(tuple(rows), BEHIND, stale)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.1, 0.05, 0.15), "D-TRAK beats TRAK here"),
        ((-0.1, -0.15, -0.05), "D-TRAK does not beat TRAK here"),
        ((0.01, -0.05, 0.06), "D-TRAK is not significantly different from TRAK here"),
    ],
)
def test_the_verdict_says_what_was_measured(gain, words):
    found = evaluation(row("dtrak", 0.2 + gain[0], gain=gain), row("trak", 0.2))
    assert words in verdict(found, "generated")
    assert verdict(found, "held-out") == ""


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.1, 0.05, 0.15), "**D-TRAK adds 10.0 (95 %: 5.0 to 15.0)** to the best baseline, Pixel cosine."),
        ((-0.1, -0.15, -0.05), "**D-TRAK is worse than the best baseline**, Pixel cosine, by −10.0"),
        ((0.01, -0.05, 0.06), "**D-TRAK adds nothing significant** to the best baseline, Pixel cosine: 1.0"),
    ],
)
def test_what_a_method_adds_to_the_baselines(gain, words):
    found = replace(evaluation(row("dtrak", 0.3, gain=gain)), behind={**BEHIND, "ceilings": {"generated": 0.8}})
    assert words in added(found, "generated")
    assert "would reach 80.0" in added(found, "generated")
    assert added(found, "held-out") == ""
    (entry,) = explained_rows(found, "generated")
    assert (entry["over the best baseline"], entry["another query's scores"]) == (100 * gain[0], 5.0)


def test_the_significance_test_is_reported_by_kind():
    checked = Naming("dtrak", {"noise": (64, 2), "generated": (200, 50)}, (0.4, 0.05, 80), (0.1, 0.02, 900))
    found = replace(evaluation(row("dtrak", 0.3)), naming=(checked, Naming("trak", {}, (), ())))
    noise, generated = naming_rows(found)
    assert noise == {"images": "images of noise", "D-TRAK": "2 of 64", "TRAK": "0 of 0"}
    assert generated["D-TRAK"] == "50 of 200"
    first, second = naming_texts(found)
    assert "by 0.40 ± 0.10 standard deviations (80 pairs)" in first
    assert "too few" in second
    families = (FamilyRow("dtrak", "generated", "remove-5", 0.1, (0.05, 0.2), 48),)
    (entry,) = family_table(replace(found, families=families), "generated")
    assert entry == {"method": "D-TRAK", "without 5 % (48)": "10.0 (5.0 to 20.0)"}


def test_the_leader_is_named_with_those_within_its_interval():
    found = evaluation(row("dtrak", 0.3), row("trak", 0.29), row("pixel-cos", 0.1), row("datamodel", 0.5))
    text = best(found, "generated")
    assert text.startswith("The highest LDS is D-TRAK's: 30.0 (28.0 to 32.0).")
    assert "TRAK." in text
    assert "Pixel" not in text


def test_reliability_says_how_sure_it_is():
    found = evaluation(row("dtrak", 0.3), row("trak", 0.01, -0.05, 0.07), row("dtrak", 0.2, queries="held-out"))
    good = reliability(found, Setting("dtrak", damping=5.0), generated=True)
    assert (good.kind, good.row.queries) == ("measured", "generated")
    assert "LDS 30.0 (28.0 to 32.0) on 200 generated images, against 64 retrained models" in good.text
    assert reliability(found, Setting("dtrak"), generated=False).row.queries == "held-out"
    weak = reliability(found, Setting("trak"), generated=True)
    assert weak.kind == "weak"
    assert "not significantly better than chance" in weak.text
    worse = reliability(evaluation(row("trak", -0.1, -0.15, -0.05)), Setting("trak"), generated=True)
    assert "worse than chance" in worse.text
    curve = tuple(np.linspace(0, 0.16, 17))
    named = reliability(evaluation(row("dtrak", 0.3, curve=curve)), Setting("dtrak", damping=1.0), generated=True)
    assert "λ was chosen on other models (about 0.32); at λ = 1, as here, the LDS on all models is 8.0" in named.text
    assert "seed" not in named.text
    for other, words in (
        (None, "with another seed it says less"),
        (0.1, "on 8 trained with another seed, its LDS is 10.0"),
    ):
        knowing = evaluation(replace(row("exact", 0.8), other_seed=other), row("dtrak", 0.3))
        knowing = replace(knowing, behind={**BEHIND, "repeated": 8, "ceilings": {"generated": 0.5}})
        assert words in reliability(knowing, Setting("exact"), generated=True).text
        assert words in added(knowing, "generated")
    assert reliability(found, Setting("dtrak", timesteps=3), generated=True).kind == "unknown"
    assert reliability(None, Setting("dtrak"), generated=True).kind == "unknown"
    assert (
        "the model changed"
        in reliability(evaluation(row("dtrak", 0.3), stale="the model changed"), Setting(), True).text
    )


def test_tables_and_curves_hold_what_was_measured():
    found = evaluation(
        row("dtrak", 0.3),
        row("dtrak,timesteps=1", 0.1),
        row("dtrak,timesteps=10", 0.3),
        row("dtrak,timesteps=5,strategy=cumulative", 0.05),
        row("dtrak,timesteps=5", 0.2),
        row("dtrak,timesteps=5,projection_dim=64", 0.2),
        row("dtrak,timesteps=5,projection_dim=64,checkpoint=checkpoint-0.50", 0.15),
        row("dtrak,checkpoint=randomised", 0.0),
        row("random", 0.0),
        row("trak", -0.2),
    )
    (table,) = table_rows([row("dtrak", 0.3)])
    assert table == {"method": "D-TRAK", "LDS": 30.0, "95 % from": 28.0, "to": 32.0, "over TRAK": 0.0,
                     "features": "K = 10, k = 64", "oracle λ": 31.0, "λ chosen": "0.1 and 1"}  # fmt: skip
    (along,) = curves(found, "timesteps", "generated", ())
    assert (along.values, along.lds) == ((1, 5, 10), (0.1, 0.2, 0.3))
    (along,) = curves(found, "checkpoint", "generated", ())
    assert (along.values, along.lds) == (("checkpoint-0.50", "last"), (0.15, 0.2))
    (along,) = curves(found, "strategy", "generated", ())
    assert set(zip(along.values, along.lds, strict=True)) == {("uniform", 0.2), ("cumulative", 0.05)}
    damping = curves(found, "damping", "generated", (-1, 0, 1))
    assert damping[0].values == (0.1, 1, 10)
    assert damping[0].lds == (0.1, 0.2, 0.05)
    assert curves(found, "draws", "generated", ()) == []
    assert {r.setting for r in control_rows(found, "generated")} == {"dtrak,checkpoint=randomised", "random"}
    assert interval_text(row("trak", -0.2)) == "−20.0 (−22.0 to −18.0)"
    figure = lds_bars(["a", "b"], [30.0, 1.0], [28.0, -1.0], [32.0, 3.0], [31.0, 2.0])
    assert list(figure.data[0].x) == [1.0, 30.0]
    assert list(figure.data[0].error_x.arrayminus) == [2.0, 2.0]
    assert list(lds_curves(damping, "λ", True).data[0].y) == pytest.approx([10, 20, 5])
    assert [box.name for box in distance_boxes({"Random": [1.0], "TRAK": [2.0]}, "ℓ2").data] == ["Random", "TRAK"]
