"""``--shard`` parts in any order, concurrently or repeated, give the same bytes as one run."""

import random

import numpy as np
import pytest

from dtrak.build import features as building
from dtrak.build.features import build_features, build_indexes
from dtrak.build.retrain import retrain_subsets
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.execution.share import Share
from dtrak.methods.subsets import load_subsets
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from tests.execution import tasks
from tests.helpers import build_hashes, call


def test_shares_cover_everything_once():
    for of in (1, 3, 7):
        for place in range(20):
            assert sum(Share(number, of).has(place) for number in range(1, of + 1)) == 1
    assert Share.parse("2/8") == Share(2, 8)
    for text in ("0/3", "4/3", "3", "a/b", "1/0", "-1/2"):
        with pytest.raises(DtrakError, match="Invalid --shard"):
            Share.parse(text)


def test_shards_in_random_order_one_of_them_twice_merge_to_the_same_bytes(fresh, source, monkeypatch):
    monkeypatch.setattr(building, "SHARD_SIZE", 4)
    build_indexes(fresh, build_features(fresh, Local(1)))
    whole = build_hashes(fresh.root)
    for name in ("features", "index"):
        (fresh.root / name).rename(fresh.root / f"whole-{name}")
    study = str(source / "tiny.yaml")
    shares = ["1/3", "2/3", "3/3"]
    random.Random(0).shuffle(shares)
    call("build", study, "--index-only", "--workers", 1, "--shard", shares[0])
    with pytest.raises(DtrakError, match="shards of the index's features are missing"):
        call("merge", study)
    for share in (*shares[1:], shares[0]):
        assert call("build", study, "--index-only", "--workers", 1, "--shard", share).exit_code == 0
    assert call("merge", study).exit_code == 0
    assert build_hashes(fresh.root) == whole


def test_a_share_asks_for_prepared_data(source, tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    for command in ("build", "retrain"):
        with pytest.raises(DtrakError, match="not prepared"):
            call(command, source / "tiny.yaml", "--shard", "1/2")


def test_shares_of_the_retraining_run_at_once_and_twice(fresh: StudyFolder, source):
    """Separate processes, two of them with the same part; the evaluation queries exist already."""
    query_set(fresh)
    command = ["retrain", str(source / "tiny.yaml"), "--subsets", "3", "--seeds", "1", "--workers", "1"]
    commands = [[*command, "--shard", share] for share in ("2/2", "1/2", "2/2")]
    assert list(Local(3).results(tasks.command_line, (), commands)) == [0, 0, 0]
    losses = load_subsets(fresh, "lds").losses
    assert losses.shape[0] == 3
    for path in (fresh.root / "truth" / "lds").glob("*.json"):
        path.unlink()
    retrain_subsets(fresh, "lds", 3, 1, Local(1))
    np.testing.assert_array_equal(load_subsets(fresh, "lds").losses, losses)
    assert not list(fresh.root.rglob("*.part"))
