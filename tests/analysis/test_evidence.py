"""Evidence: parts sum to the score; significance test, stability, hubs and near-duplicates match their definitions."""

import csv
import io
import json
import re

import numpy as np
import pytest

from dtrak.analysis.comparison import Ranked
from dtrak.analysis.evidence import damp_hubs, hubs, near_duplicates, split_by_block, split_by_timestep, stability
from dtrak.analysis.significance import Null, null_of, standardise
from dtrak.app.ablate import POWERS, damping_curve, lane_agreements, setting_cost
from dtrak.app.exports import to_csv, to_html, to_json
from dtrak.app.views import change_badges, evidence_badges, tiles, unstable
from dtrak.gradients.outputs import OUTPUT_FUNCTIONS
from dtrak.methods.choices import changed, offer, stored
from dtrak.methods.ranking import top_scored
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError


def ask(attributor, query, setting):
    features = attributor.features(query, [setting])
    return features, attributor.scores(setting, query, features)[0]


@pytest.mark.parametrize(
    "text",
    ["dtrak", "trak,damping=0.01", "grad-dot", "grad-cos", "relative-if,damping=0.1", "renormalised-if",
     "dtrak,timesteps=1,draws=2", "dtrak,projection_dim=16", "dtrak,output=l2-norm", "trak,strategy=cumulative"],
)  # fmt: skip
def test_timestep_parts_sum_to_the_score(attributor, query, text):
    setting = Setting.parse(text)
    features, scores = ask(attributor, query, setting)
    split = split_by_timestep(attributor, setting, query, features)
    np.testing.assert_allclose(split.scores.sum(0), scores, rtol=1e-3, atol=1e-5 * np.abs(scores).max())
    assert len(split.names) == len(split.timesteps) == len(split.scores)


@pytest.mark.parametrize("text", ["dtrak", "trak,damping=0.01", "grad-cos", "dtrak,projection_dim=16"])
def test_block_parts_sum_to_the_score(attributor, query, text):
    setting = Setting.parse(text)
    features, scores = ask(attributor, query, setting)
    split = split_by_block(attributor, setting, query, features, rows=(3, 0, 13))
    expected = scores[[3, 0, 13]]
    np.testing.assert_allclose(split.scores.sum(0), expected, rtol=1e-3, atol=1e-5 * np.abs(scores).max())
    wanted = ["conv in", "down block 0", "down block 1", "mid block", "up block 0", "up block 1", "conv out"]
    assert [name for name in split.names if name in wanted] == wanted


def test_what_is_no_sum_says_so(attributor, query):
    for text in ("das", "tracin", "dtrak-ensemble", "random"):
        with pytest.raises(DtrakError, match="not a sum"):
            split_by_timestep(attributor, Setting.parse(text), query, {})
    setting = Setting("trak", projection_seed=1)
    with pytest.raises(DtrakError, match="not stored separately"):
        split_by_timestep(attributor, setting, query, ask(attributor, query, setting)[0])
    setting = Setting("dtrak", timesteps=1)
    with pytest.raises(DtrakError, match="index only"):
        split_by_block(attributor, setting, query, ask(attributor, query, setting)[0], (0,))


def test_a_hub_is_marked_and_damped():
    lists = standardise(np.random.default_rng(0).standard_normal((200, 100)))
    lists[:, 3] += 5
    null = Null.of(lists, ["noise"] * 200)
    assert hubs(null, 5).marked.nonzero()[0].tolist() == [3]
    few = np.zeros((4, 1000))
    few[np.repeat(range(4), 5), range(20)] = 1  # each ranking has its own top
    assert not hubs(Null.of(few, ["noise"] * 4), 5).marked.any()
    scores = lists[0]
    assert scores.argmax() == 3
    assert damp_hubs(scores, null).argmax() != 3


def test_stability_is_one_where_a_score_dwarfs_the_rest_and_repeats(attributor, query):
    setting = Setting("dtrak")
    features, _ = ask(attributor, query, setting)
    found = stability(attributor, setting, query, features, top=5)
    again = stability(attributor, setting, query, features, top=5)
    assert (found.share == again.share).all()
    assert found.share.sum() == pytest.approx(5)
    assert (found.low <= found.high).all()
    assert found.resamples == 40
    everything = stability(attributor, setting, query, features, top=14)
    assert (everything.share == 1).all()
    single = Setting("dtrak", timesteps=1)
    features, _ = ask(attributor, query, single)
    with pytest.raises(DtrakError, match="single timestep"):
        stability(attributor, single, query, features)


def test_near_duplicates_are_grouped_through_others():
    pixels = np.zeros((5, 8, 8, 3), np.uint8)
    pixels[1] += 8
    pixels[2] += 16
    pixels[3] += 120
    pixels[4] += 121
    assert near_duplicates(pixels).tolist() == [0, 0, 0, 3, 3]
    assert near_duplicates(pixels, 1e-3).tolist() == [0, 1, 2, 3, 4]


def test_views_of_a_ranking(attributor, query, tiny):
    scores = np.arange(14.0) - 4
    table = tiny.table
    assert [s.score for s in top_scored(scores, table, 3)] == [9, 8, 7]
    assert [s.score for s in top_scored(scores, table, 9, -1)] == [-4, -3, -2, -1]
    groups = np.arange(14)
    groups[13] = 12
    assert [s.score for s in top_scored(scores, table, 3, 1, groups)] == [9, 7, 6]
    moved = change_badges(Ranked.of(scores), Ranked.of(-scores), table, 2)
    assert moved[table.records[0].id][0][0] == "▲ 13"
    features = attributor.features(query, [Setting("dtrak")])
    stable = stability(attributor, Setting("dtrak"), query, features)
    badges = evidence_badges(table, stable, hubs(null_of(attributor, Setting("dtrak"))), groups)
    assert ("×2", "", "this many training images look nearly the same") in badges[table.records[12].id]
    ranked = top_scored(scores, table, 3)
    shown = tiles(ranked, table, badges, unstable(ranked, table, stable))
    assert {"badges", "faded"} <= set(shown[0])


def test_choices_offer_what_is_stored(attributor):
    setting = Setting("dtrak")
    assert set(offer(attributor, setting, "output").values) == set(OUTPUT_FUNCTIONS)
    assert offer(attributor, setting, "timesteps").values == [1, 5]
    assert 20 in offer(attributor, setting, "timesteps").missing
    assert offer(attributor, setting, "draws").values == [1, 2]
    assert offer(attributor, setting, "strategy").values == ["uniform", "cumulative"]
    assert offer(attributor, setting, "projection_seed").values == [0]
    assert offer(attributor, Setting("trak"), "projection_seed").values == [0, 1]
    assert offer(attributor, setting, "checkpoint").values == ["last", "checkpoint-0.50", "member-1"]
    assert offer(attributor, setting, "projection_dim").values[-1] == 64
    assert changed(attributor, Setting("dtrak", timesteps=5), "checkpoint", "checkpoint-0.50").timesteps is None
    assert changed(attributor, setting, "timesteps", 20) is None
    assert stored(attributor, setting)


def test_cost_and_curve(attributor, query, tiny):
    setting = Setting("dtrak", timesteps=1)
    cost = setting_cost(attributor, setting, [])
    assert cost.passes == 5  # a query computes all stored timesteps, even if only some are used
    assert cost.seconds is None
    assert cost.megabytes > 14 * 5 * 64 * 4 / 1e6
    assert setting_cost(attributor, Setting("dtrak-ensemble"), []).passes == 6
    features, scores = ask(attributor, query, Setting("dtrak", damping=1.0))
    curve = damping_curve(attributor, Setting("dtrak", damping=1.0), query, features)
    assert curve[list(POWERS).index(0)] == pytest.approx(1)
    assert damping_curve(attributor, Setting("grad-dot"), query, features) == []
    (pair,) = lane_agreements([Ranked.of(scores)] * 2, 5)
    assert pair.agreement.overlap == 1


def test_exports_hold_the_answer(attributor, query, tiny):
    setting = Setting("dtrak")
    features = attributor.features(query, [setting])
    answer = attributor.attribute(query, features, setting, 5)
    verdict, stable = null_of(attributor, setting).judge(answer.scores), stability(attributor, setting, query, features)
    rows = list(csv.DictReader(io.StringIO(to_csv(answer, stable).decode("utf-8-sig"))))
    assert len(rows) == 14
    assert rows[0]["id"] == answer.proponents[0].record.id
    assert float(rows[0]["score"]) == pytest.approx(answer.scores.max(), rel=1e-5)
    content = json.loads(to_json("tiny", {"seed": 1}, answer, verdict, stable))
    assert content["verdict"]["null_size"] == 80
    assert len(content["scores"]) == 14
    page = to_html("tiny", {"prompt": "<script>"}, query.pixels, [answer], verdict, stable, "a & b").decode()
    assert "<script>" not in page
    assert answer.fingerprint in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page
    assert answer.proponents[0].record.id in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_a_cell_is_never_a_formula(attributor, query, tiny):
    from dtrak.app.exports import no_formula

    assert no_formula("=1+1") == "'=1+1"
    assert no_formula("plain") == "plain"
