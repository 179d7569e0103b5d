"""A run depends on (seed, epoch, sample id): it resumes to the same weights, and samples can be excluded."""

import math

import numpy as np
import pytest
import torch

from dtrak.config import TrainingConfig
from dtrak.models.generation import GenerationSettings
from dtrak.models.loading import load_study_model
from dtrak.models.sampling import initial_noise, sample
from dtrak.training.dropout import KeyedDropout, keyed_dropout
from dtrak.training.loop import KeyedBatches, Run, SmoothAdamW, clipped, epoch_order, learning_rate

CONFIG = TrainingConfig(steps=6, batch_size=5, warmup=2, save_every=2, learning_rate=1e-3, flip=True)


@pytest.fixture
def setting(tiny):
    model = load_study_model(tiny)
    table = tiny.table
    latents = model.encode(table.pixels[: table.train_size])
    return model, latents, table.train_ids, table.names[: table.train_size]


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.parameters.values()])


def test_a_run_stopped_midway_resumes_to_the_same_weights(tiny, setting, tmp_path):
    run = Run(setting[0], CONFIG, *setting[1:])
    run.train()
    stopped = Run(load_study_model(tiny), CONFIG, *setting[1:], folder=tmp_path)

    class Stop(Exception):
        pass

    def stop(step):
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        stopped.train(at_steps=stop)
    resumed = Run(load_study_model(tiny), CONFIG, *setting[1:], folder=tmp_path)
    assert resumed.step == 2
    resumed.train()
    assert (weights(resumed) == weights(run)).all()
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == CONFIG.steps


def test_leaving_samples_out_changes_nothing_else(setting):
    model, latents, ids, classes = setting
    kept = torch.ones(len(ids))
    kept[3] = 0
    everyone = KeyedBatches(model, CONFIG, latents, ids, classes, torch.ones(len(ids)))
    without = KeyedBatches(model, CONFIG, latents, ids, classes, kept)
    missing = 0
    for step in range(everyone.steps_per_epoch):
        a, b = everyone(step), without(step)
        places = [
            i
            for i in range(len(a.x))
            if not (a.x[i] == latents[3]).all() and not (a.x[i] == model.codec.flip(latents[3])).all()
        ]
        missing += len(a.x) - len(places)
        assert (a.x[places] == b.x).all()
        assert (a.noise[places] == b.noise).all()
        assert (a.timesteps[places] == b.timesteps).all()
    assert missing == 1


def test_stratified_timesteps_lie_one_in_each_part_and_belong_to_places(setting):
    model, latents, ids, classes = setting
    config = CONFIG.model_copy(update={"timestep_sampling": "stratified"})
    kept = torch.ones(len(ids))
    kept[3] = 0
    everyone = KeyedBatches(model, config, latents, ids, classes, torch.ones(len(ids)))
    without = KeyedBatches(model, config, latents, ids, classes, kept)
    for step in range(everyone.steps_per_epoch):
        a, b = everyone(step).timesteps, without(step).timesteps
        assert (a * len(a) // model.num_timesteps).tolist() == list(range(len(a)))
        assert set(b.tolist()) <= set(a.tolist())


def test_each_epoch_has_everyone_once_in_its_own_order():
    ids = [str(i) for i in range(50)]
    first, second = epoch_order(0, 0, ids), epoch_order(0, 1, ids)
    assert sorted(first) == list(range(50))
    assert (first != second).any()
    reversed_order = epoch_order(0, 0, ids[::-1])
    assert [ids[i] for i in first] == [ids[::-1][i] for i in reversed_order]


def test_optimiser_equals_adamw_with_epsilon_inside_the_root():
    config = TrainingConfig(epsilon=1e-3, weight_decay=0.1, betas=(0.8, 0.9))
    p, m, v = 2.0, 0.0, 0.0
    tensor = torch.tensor([2.0], dtype=torch.float64)
    optimiser = SmoothAdamW([tensor], config)
    for step, g in enumerate([0.5, -1.0, 0.0]):
        optimiser.step([torch.tensor([g], dtype=torch.float64)], step, 0.01)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        p = p * (1 - 0.01 * 0.1) - 0.01 * (m / (1 - 0.8 ** (step + 1))) / math.sqrt(v / (1 - 0.9 ** (step + 1)) + 1e-6)
        assert tensor.item() == pytest.approx(p, rel=1e-12)


def test_learning_rate_warms_up_and_falls():
    config = TrainingConfig(warmup=10, learning_rate=1.0, final_learning_rate=0.1, constant=0.5)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == 1
    assert rates[100] == pytest.approx(0.1)
    assert (np.diff(rates[54:]) <= 0).all()


def test_a_seed_gives_the_same_pixels_alone_and_among_others(tiny):
    model = load_study_model(tiny)
    *_, alone = sample(model, [GenerationSettings(5, 4, "round")])
    *_, among = sample(model, [GenerationSettings(4, 4, "square"), GenerationSettings(5, 4, "round")])
    np.testing.assert_array_equal(model.decode(alone.x)[0], model.decode(among.x)[1])
    assert (initial_noise([4], (2,)) != initial_noise([5], (2,))).all()
    np.testing.assert_array_equal(model.decode(model.encode(tiny.table.pixels)), tiny.table.pixels)


def test_parts_of_a_batch_add_up_and_dropout_belongs_to_samples(tiny, setting):
    """One pass per batch and one sample per pass give the same step, also with an excluded sample."""
    config = CONFIG.model_copy(update={"dropout": 0.3, "clip": 0.5, "min_snr_gamma": None})
    found = []
    for part in (5, 1):
        model = load_study_model(tiny)
        model.network.double()  # in float32 AdamW makes rounding in small gradients as large as a step
        model.dtype = torch.float64
        run = Run(model, config, *setting[1:])
        run._part = part
        run.train()
        found.append(weights(run))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
    model, inputs, ids, names = setting
    kept = torch.ones(len(ids))
    everyone = KeyedBatches(model, config, inputs, ids, names, kept)(0)
    gone = ids.index(ids[int(epoch_order(config.seed, 0, ids)[0])])
    kept = kept.clone()
    kept[gone] = 0
    without = KeyedBatches(model, config, inputs, ids, names, kept)(0)
    assert without.keys == everyone.keys[1:]
    model.network.train()

    def predictions(batch):
        with torch.no_grad(), keyed_dropout(model.network, 0.3, "", batch.keys):
            return model.predict(batch.x, batch.timesteps, batch.condition)

    torch.testing.assert_close(predictions(without), predictions(everyone)[1:], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        plain = model.predict(everyone.x, everyone.timesteps, everyone.condition)
    assert not torch.allclose(plain, predictions(everyone), atol=1e-3)
    assert not any(isinstance(m, KeyedDropout) for m in model.network.modules())


def test_clipping_bounds_the_joint_norm():
    gradients = [torch.full((3,), 2.0), torch.full((1,), 2.0)]
    assert sum(g.square().sum() for g in clipped(gradients, 1.0)).sqrt() == pytest.approx(1.0, rel=1e-4)
    assert clipped(gradients, 100.0)[0].tolist() == [2.0] * 3
    assert clipped(gradients, None) is gradients
