"""Retraining without some images is keyed, resumable and stoppable; counterfactual distances."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dtrak.build.features import build_features, build_indexes
from dtrak.evaluation import removal as module
from dtrak.evaluation.counterfactual import (
    COMPARED,
    MATCHED,
    SEED,
    Counterfactuals,
    Pair,
    chosen_queries,
    compare,
    counterfactual,
    load_counterfactuals,
    matched,
    mean_with_interval,
    removals,
)
from dtrak.evaluation.removal import Removal, Task, draw_all, draw_without, drawn, is_drawn
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.execution.threads import task_threads
from dtrak.methods.attributor import Attributor
from dtrak.models.generation import GenerationSettings
from dtrak.models.sampling import sample
from dtrak.training.loop import Run
from dtrak.training.study import initial_model
from dtrak.utils.errors import DtrakError

SETTINGS = (GenerationSettings(1, 3, "round"), GenerationSettings(2, 3, None))


def removal_of(fresh, *rows):
    return Removal.of(fresh, [fresh.table.train_ids[row] for row in rows], None, None)


def test_leaving_nothing_out_is_the_plain_training(fresh):
    draw_without(fresh, removal_of(fresh), SETTINGS)
    table, model = fresh.table, initial_model(fresh)
    latents = model.encode(table.pixels[: table.train_size])
    run = Run(model, fresh.study.training, latents, table.train_ids, table.names[: table.train_size])
    with task_threads():
        run.train()
    for number, one in enumerate(SETTINGS):
        *_, last = sample(model, [one])
        np.testing.assert_array_equal(drawn(fresh, removal_of(fresh), SETTINGS)[number], model.decode(last.x)[0])


def test_a_removal_changes_pictures_and_its_order_does_not(fresh):
    draw_all(fresh, [Task(removal_of(fresh), SETTINGS), Task(removal_of(fresh, 3, 5, 7), SETTINGS)], Local(1))
    assert (drawn(fresh, removal_of(fresh), SETTINGS) != drawn(fresh, removal_of(fresh, 3, 5, 7), SETTINGS)).any()
    assert removal_of(fresh, 7, 5, 3) == removal_of(fresh, 3, 5, 7)


def test_workers_change_no_pixel_and_nothing_is_trained_twice(fresh, monkeypatch):
    tasks = [Task(removal_of(fresh, row), SETTINGS) for row in (0, 1, 2)]
    draw_all(fresh, tasks[:2], Local(1))
    alone = drawn(fresh, tasks[1].removal, SETTINGS)
    for path in tasks[1].removal.folder(fresh).iterdir():
        path.unlink()
    seen = []
    draw_all(fresh, tasks, Local(2), report=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(drawn(fresh, tasks[1].removal, SETTINGS), alone)
    assert seen[0] == (3, 9)
    assert seen[-1] == (9, 9)
    monkeypatch.setattr(module, "training_run", lambda *a, **k: 1 / 0)
    draw_all(fresh, tasks, Local(1))


class Enough(Exception):
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_a_report_that_raises_stops_the_training(fresh, workers):
    long = type(fresh)(fresh.study.model_copy(update={"training": fresh.study.training.model_copy(
        update={"steps": 100_000})}))  # fmt: skip
    tasks = [Task(removal_of(long, row), SETTINGS) for row in (0, 1)]

    def report(done, total):
        if done:
            raise Enough

    with pytest.raises(Enough):
        draw_all(long, tasks, Local(workers), report)
    assert not any(is_drawn(long, task.removal, SETTINGS[0]) for task in tasks)


def test_an_adapter_draws_another_picture_without_training_again(fresh, monkeypatch):
    training = fresh.study.training.model_copy(update={"method": "lora", "rank": 2, "lora_modules": ("conv1", "to_q")})
    model = fresh.study.model.model_copy(update={"unet": None, "adapter": Path("trained before")})
    lora = type(fresh)(fresh.study.model_copy(update={"training": training, "model": model}))
    draw_without(lora, removal_of(lora, 4), SETTINGS[:1])
    first = drawn(lora, removal_of(lora, 4), SETTINGS[:1])
    monkeypatch.setattr(module, "training_run", lambda *a, **k: 1 / 0)
    draw_without(lora, removal_of(lora, 4), SETTINGS)
    assert drawn(lora, removal_of(lora, 4), SETTINGS).shape == (2, *first.shape[1:])


def test_a_shorter_recipe_shortens_its_schedule(fresh):
    recipe = fresh.study.training.model_copy(update={"steps": 100, "warmup": 20})
    study = type(fresh)(fresh.study.model_copy(update={"training": recipe}))
    short = Removal.of(study, [], 25, "fp32")
    assert (short.recipe(study).steps, short.recipe(study).warmup) == (25, 5)
    assert short.epochs(study) == 25 / 4  # fourteen images make four batches


def test_counterfactuals_of_each_method(fresh):
    build_indexes(fresh, build_features(fresh, Local(1)))
    asked, attributor = query_set(fresh), Attributor(fresh)
    found = counterfactual(attributor, queries=2, remove=3, engine=Local(1))
    assert found.queries == sorted(chosen_queries(asked, 2))
    assert chosen_queries(asked, 2) == chosen_queries(asked, 3)[:2]
    assert {pair.method for pair in found.pairs} == set(COMPARED)
    for pair in found.pairs:
        assert pair.removed == {SEED: 0, "whole-label": pair.removed}.get(pair.method, 3)
        assert pair.loss is not None
        for name in pair.after:
            assert found.picture(name).shape == (16, 16, 3)
    assert all(pair.distance > 0 for pair in found.of(SEED))
    assert {pair.removed for pair in found.of("whole-label")} <= {6, 7, 8}
    assert found.before(found.queries[0]).shape == (16, 16, 3)
    mean, low, high = found.further("dtrak", "dtrak" + MATCHED)
    assert low <= mean <= high
    differences = [a.distance - b.distance for a, b in zip(found.of("dtrak"), found.of("dtrak" + MATCHED), strict=True)]
    assert mean == pytest.approx(np.mean(differences))
    assert found.behind["settings"]["dtrak"] == "dtrak"
    with pytest.raises(DtrakError, match="two must remain"):
        counterfactual(attributor, queries=1, remove=13, engine=Local(1))
    kept = load_counterfactuals(fresh)
    assert kept.pairs == found.pairs
    assert kept.stale == ""
    assert kept.behind["recipe_steps"] == kept.behind["steps"] == 3
    plan, query = removals(attributor, asked, 0, 3), asked.queries[asked.heldout]
    for name in ("dtrak", "pixel-ridge"):
        answer = attributor.attribute(query, attributor.features(query), name, 3)
        assert plan[name][: len(answer.proponents)] == [s.record.id for s in answer.proponents]
    assert {fresh.table.records[fresh.table.rows[i]].label for i in plan["whole-label"]} == {query.label}
    assert plan["dtrak" + MATCHED] != removals(attributor, asked, 1, 3)["dtrak" + MATCHED]  # drawn for each picture


def test_random_removals_match_labels_and_creators():
    groups = [("a", i % 3) for i in range(30)] + [("b", 0)] * 5
    rows = [0, 3, 1, 30, 31]
    found = matched(groups, rows, np.random.default_rng(0))
    assert len(set(found)) == 5
    assert Counter(groups[row] for row in found) == Counter(groups[row] for row in rows)
    assert matched(groups, [30, 31, 32, 33, 34], np.random.default_rng(0)) == [30, 31, 32, 33, 34]


def test_p_values_compare_with_the_matched_removal():
    random = np.random.default_rng(0)
    pairs = [Pair(kind, q, 3, base + random.random(), 0.5, ())
             for kind, base in (("dtrak", 5), ("dtrak:matched", 0), ("trak", 0), ("trak:matched", 0))
             for q in range(16)]  # fmt: skip
    found = Counterfactuals(tuple(pairs), {}, Path())
    adjusted = found.adjusted()
    assert adjusted["dtrak"] < 1e-3 < 0.05 < adjusted["trak"]
    same = Counterfactuals(tuple(p for p in pairs if p.method == "dtrak"), {}, Path())
    assert same.adjusted() == {}


def test_distances_and_intervals(tiny):
    attributor = Attributor(tiny)
    pixels = np.asarray(tiny.table.pixels)
    distance, cosine = compare(attributor, pixels[0], pixels[1:3])
    scaled = pixels[:3].astype(float) / 127.5 - 1
    by_hand = [((scaled[i] - scaled[0]) ** 2).sum() ** 0.5 for i in (1, 2)]
    assert distance == pytest.approx(np.mean(by_hand), rel=1e-5)
    e = attributor.embedder(pixels[:3]).astype(float)
    cosines = [e[i] @ e[0] / np.linalg.norm(e[i]) / np.linalg.norm(e[0]) for i in (1, 2)]
    assert cosine == pytest.approx(np.mean(cosines), rel=1e-5)
    assert compare(attributor, pixels[0], pixels[:1]) == pytest.approx((0, 1))
    mean, low, high = mean_with_interval(np.random.default_rng(0).normal(5, 1, 400))
    assert (mean, high - low) == pytest.approx((5, 4 / 20), abs=0.1)


def test_a_changed_recipe_is_another_model(fresh):
    recipe = fresh.study.training.model_copy(update={"learning_rate": 0.5})
    other = type(fresh)(fresh.study.model_copy(update={"training": recipe}))
    assert removal_of(fresh, 1).folder(fresh) != removal_of(other, 1).folder(other)
    assert removal_of(fresh, 1).folder(fresh) == removal_of(fresh, 1).folder(fresh)
