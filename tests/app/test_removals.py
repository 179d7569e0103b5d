"""View models of counterfactuals."""

from pathlib import Path

from dtrak.app.removals import effect, removal_means, removal_title, removal_values
from dtrak.evaluation.counterfactual import Counterfactuals, Pair


def test_counterfactuals_are_summarised_by_method():
    distances = {"random": 1.0, "trak": 2.0, "dtrak": 4.0, "dtrak:matched": 3.0}
    pairs = tuple(Pair(name, q, 2, d + q, 0.5, ()) for name, d in distances.items() for q in (0, 1))
    found = Counterfactuals(pairs, {}, Path())
    assert removal_values(found, "distance")["D-TRAK"] == [4.0, 5.0]
    assert removal_values(found, "cosine")["TRAK"] == [0.5, 0.5]
    means = removal_means(found)
    assert [row["removed by"] for row in means] == ["Random", "TRAK", "D-TRAK", "Random, matched to D-TRAK"]
    assert means[2]["pixel distance, ℓ2"].startswith("4.50 (")
    assert means[2]["embedding cosine"] == "0.500 (0.500 to 0.500)"
    assert effect(found) == (
        "Removing a method's top images changes the generated images. TRAK: **more than** removing random images (by "
        "+1.00, 95 %: +1.00 to +1.00); D-TRAK: **more than** removing random images of the same labels and creators "
        "(by +1.00, 95 %: +1.00 to +1.00, p = 0.5 (Holm))."
    )
    assert removal_title("other-seed") == "Nothing, another seed"
