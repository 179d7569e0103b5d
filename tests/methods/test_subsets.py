"""Which images a subset keeps: stratified shares, single creators, clusters that look alike."""

import numpy as np
import pytest

from dtrak.methods.embeddings import Embedder, train_embeddings
from dtrak.methods.subsets import REMOVED, load_subsets, stratified, subset_mask
from dtrak.utils.errors import DtrakError


def test_stratified_subsets_keep_every_label_and_creator_in_proportion():
    random = np.random.default_rng(0)
    labels = random.choice(["common", "rare", "rarest"], 400, p=[0.8, 0.15, 0.05]).tolist()
    creators = random.choice(["a", "b", "c"], 400).tolist()
    for keep in (0.5, 0.8, 0.95):
        masks = np.stack([stratified(np.random.default_rng(i), keep, labels, creators) for i in range(200)])
        np.testing.assert_allclose(masks.sum(1), keep * 400, atol=1)
        for label in set(labels):
            rows = np.array(labels) == label
            np.testing.assert_allclose(masks[:, rows].sum(1), keep * rows.sum(), atol=1)
            for creator in set(creators):
                cell = rows & (np.array(creators) == creator)
                np.testing.assert_allclose(masks[:, cell].sum(1), keep * cell.sum(), atol=1)
        np.testing.assert_allclose(masks.mean(0), keep, atol=0.13)  # every image alike
        pairs = np.corrcoef(masks.T[:40])[np.triu_indices(40, 1)]
        assert abs(pairs).max() < 0.4  # no two images go together


def test_families_remove_what_they_say(tiny):
    table = tiny.table
    for family, share in REMOVED.items():
        kept = [subset_mask(tiny, family, number).sum() for number in range(6)]
        np.testing.assert_allclose(kept, (1 - share) * table.train_size, atol=1)
    assert not (subset_mask(tiny, "lds", 0) == subset_mask(tiny, "fit", 0)).all()
    creators = [record.creator for record in table.records[: table.train_size]]
    for number, creator in enumerate(sorted(set(creators))):
        assert (subset_mask(tiny, "creators", number) == (np.array(creators) != creator)).all()
    with pytest.raises(DtrakError, match="There are 3 creators"):
        subset_mask(tiny, "creators", 3)


def test_a_cluster_is_an_image_and_its_nearest_of_one_label(tiny):
    table = tiny.table
    mask = subset_mask(tiny, "clusters", 0)
    gone = np.flatnonzero(~mask)
    assert len(gone) == 2
    labels = [table.records[row].label for row in gone]
    assert len(set(labels)) == 1
    rows = train_embeddings(tiny, lambda: Embedder(tiny.study.embedding))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    same = np.flatnonzero(np.array([r.label for r in table.records[: table.train_size]]) == labels[0])
    nearest = [set(same[np.argsort(-(rows[same] @ rows[row]))[:2]].tolist()) for row in gone]
    assert set(gone.tolist()) in nearest


def test_a_second_seed_of_some_subsets_measures_reliability(tiny):
    truth = load_subsets(tiny, "lds")
    assert truth.seeds == 1
    assert len(truth.masks) == 6
    first, second = truth.repeats
    assert (first == truth.losses[:3]).all()
    assert first.shape == second.shape
    assert not np.allclose(first, second)
    assert load_subsets(tiny, "remove-20").repeats is None
