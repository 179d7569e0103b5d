"""The published results."""

from dtrak.app.published import DATASETS, published


def test_published_numbers_are_those_of_the_paper():
    for dataset in DATASETS:
        assert published(dataset, "generated")
    rows = {r.method: r for r in published("cifar2", "held-out")}
    assert (rows["D-TRAK · K = 100"].lds, rows["D-TRAK · K = 100"].deviation) == (33.74, 0.37)
    assert rows["TRAK · K = 10"].lds == 11.42
    assert rows["Empirical influence · M = 64"].lds == 6.00
    assert "Journey-TRAK · K = 10" not in rows
