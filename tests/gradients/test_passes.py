"""Cotangents, gradients and features equal the oracle; batch size, order and label handling change nothing."""

import numpy as np
import pytest
import torch

from dtrak.config import FeatureConfig, TrainingConfig
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.gradients.outputs import OUTPUT_FUNCTIONS
from dtrak.gradients.passes import NoiseSchedule, _row_by_row, gradient_chunks
from dtrak.models.loading import load_any, load_study_model
from dtrak.models.lora import add_lora
from dtrak.study.folder import trained_model_config
from dtrak.utils.noise import feature_noise
from tests import oracle

ROUND = torch.tensor([1])
SCHEDULE = NoiseSchedule((0, 100, 500, 900), draws=2, seed=3)


def sample_gradients(*arguments, apart=False):
    """The mean gradient of each output, from chunks."""
    chunks = [oracle.flat(chunk) for chunk in gradient_chunks(*arguments, apart=apart)]
    return [torch.cat(rows).sum(0) / len(SCHEDULE.pairs) for rows in zip(*chunks, strict=True)]


@pytest.fixture
def model(tiny):
    return load_study_model(tiny)


@pytest.fixture
def x(tiny, model):
    return model.encode(tiny.table.pixels[:1])[0]


@pytest.mark.parametrize("name", OUTPUT_FUNCTIONS)
def test_gradient_equals_oracle(tiny, model, x, name):
    fast = sample_gradients(model, x, "a", ROUND, SCHEDULE, [name])[0].numpy()
    model.network.double()
    slow = oracle.gradient(model, x, "a", ROUND, name, SCHEDULE.timesteps, SCHEDULE.draws, SCHEDULE.seed)
    assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_changes_nothing(model, x, batch_size):
    outputs = ["loss", "mean-squared-l2-norm"]
    for a, b in zip(
        sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, batch_size),
        sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, 5),
        strict=True,
    ):
        assert torch.linalg.norm(a - b) <= 1e-5 * torch.linalg.norm(b)


def test_pairs_kept_apart_add_up_to_the_sum(model, x):
    outputs = list(OUTPUT_FUNCTIONS)
    together = sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs)
    for a, b in zip(sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, 3, apart=True), together, strict=True):
        assert torch.linalg.norm(a - b) <= 1e-4 * torch.linalg.norm(b)


def test_a_lora_with_its_class_embedding_is_split_by_rows(model, x):
    recipe = TrainingConfig(method="lora", rank=2, alpha=2, lora_modules=("conv1", "to_q"))
    model = add_lora(model, recipe)
    torch.manual_seed(0)
    for parameter in model.parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    outputs = ["loss", "mean-squared-l2-norm"]
    together = sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs)
    for a, b in zip(sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, 3, apart=True), together, strict=True):
        assert torch.linalg.norm(a - b) <= 1e-4 * torch.linalg.norm(b)
    assert _row_by_row[model.network]


def test_networks_of_unknown_layers_are_split_by_vmap(model, x, monkeypatch):
    outputs = list(OUTPUT_FUNCTIONS)
    known = sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, 3, apart=True)
    monkeypatch.setattr("dtrak.gradients.rows._FORMULAS", {})
    monkeypatch.setattr("dtrak.gradients.passes._row_by_row", {})
    for a, b in zip(sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, 3, apart=True), known, strict=True):
        assert torch.linalg.norm(a - b) <= 1e-4 * torch.linalg.norm(b)


def test_values_are_the_squares_of_error_and_prediction(model, x):
    (chunk,) = gradient_chunks(model, x, "a", ROUND, SCHEDULE, ["loss"])
    for (t, draw), values in zip(SCHEDULE.pairs, chunk.values, strict=True):
        noise = torch.from_numpy(feature_noise(3, "a", [(t, draw)], tuple(x.shape)))
        step = torch.tensor([t])
        with torch.no_grad():
            prediction = model.predict(model.add_noise(x[None], noise, step), step, ROUND)
        expected = torch.stack([(prediction - noise).square().mean(), prediction.square().mean()])
        torch.testing.assert_close(values.float(), expected, rtol=1e-4, atol=1e-6)


def test_noise_depends_on_its_key_alone():
    alone = feature_noise(0, "a", [(7, 0)], (2, 3))[0]
    among = feature_noise(0, "a", [(3, 0), (7, 0), (7, 1)], (2, 3))
    assert (among[1] == alone).all()
    others = [
        feature_noise(1, "a", [(7, 0)], (2, 3))[0],
        feature_noise(0, "b", [(7, 0)], (2, 3))[0],
        among[0],
        among[2],
    ]
    assert all((other != alone).any() for other in others)


def test_noise_is_standard_normal():
    noise = feature_noise(0, "a", [(t, 0) for t in range(200)], (500,))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.2


def test_feature_is_the_projected_oracle_gradient(model, x):
    config = FeatureConfig(output="loss", timesteps=4, projection_dim=32)
    extractor = FeatureExtractor(model, [config])
    fast = extractor(x, "a", "round")[0].vector
    model.network.double()
    slow = oracle.gradient(model, x, "a", ROUND, "loss", config.timestep_list())
    projected = extractor._projectors[0](torch.from_numpy(slow)[None])[0].numpy()
    assert np.linalg.norm(fast - projected) <= 1e-4 * np.linalg.norm(projected)


def test_timestep_lists():
    assert FeatureConfig(output="loss", timesteps=10).timestep_list() == list(range(0, 1000, 100))
    assert FeatureConfig(output="loss", timesteps=3, strategy="cumulative").timestep_list() == [0, 1, 2]
    assert len(FeatureConfig(output="loss", timesteps=7).timestep_list()) == 7


@pytest.mark.parametrize("kind", ["sparse", "normal"])
def test_blocks_and_parts_add_up_whatever_shares_the_pass(model, x, kind):
    configs = [
        FeatureConfig(output=output, timesteps=4, projection=kind, projection_dim=16, projection_seed=seed, apart=apart)
        for output in ("loss", "mean-squared-l2-norm")
        for seed, apart in ((0, True), (0, False), (1, False))
    ]
    together = FeatureExtractor(model, configs, batch_size=3, by_block=True)(x, "a", "round")
    for config, feature in zip(configs, together, strict=True):
        (alone,) = FeatureExtractor(model, [config], by_block=True)(x, "a", "round")
        for a, b in (
            (feature.parts, alone.parts),
            (feature.blocks, alone.blocks),
            (feature.blocks.sum(0), alone.vector),
        ):
            assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)
    assert together[0].parts.shape == (4, 16)
    assert together[1].parts.shape == (1, 16)


def test_the_layout_of_weights_changes_rounding_alone(tiny, model, x):
    config = trained_model_config(tiny)
    plain = load_any(tiny.study, config.path, config.adapter)
    outputs = ["loss", "mean-squared-l2-norm"]
    for apart in (False, True):
        found = sample_gradients(model, x, "a", ROUND, SCHEDULE, outputs, apart=apart)
        for a, b in zip(sample_gradients(plain, x, "a", ROUND, SCHEDULE, outputs, apart=apart), found, strict=True):
            assert torch.linalg.norm(a - b) <= 1e-4 * torch.linalg.norm(b)
