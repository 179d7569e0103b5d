"""UNets trained by flow matching: objective and sampler equal those formulas, written out."""

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dtrak.config import FeatureConfig, TrainingConfig
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.models.families import loader_of
from dtrak.models.generation import GenerationSettings
from dtrak.models.sampling import initial_noise, sample, trajectory
from dtrak.training.loop import Batch, Run
from tests.pipelines import write_pipeline
from tests.stable_diffusion import SIDE, write_stable_diffusion

PROMPTS, SHIFT = ["a round painting", ""], 3.0


def shifted(level):
    return SHIFT * level / (1 + (SHIFT - 1) * level)


@pytest.fixture(scope="module", params=["stable-diffusion", "sdxl"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sdxl":
        write_pipeline("sdxl", folder)
    else:
        write_stable_diffusion(folder)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return loader_of(folder).load(folder, SIDE, None, torch.float32, (), 1.0)


def velocity(model, x, level, prompts):
    told = model.conditioner.told(model.condition(prompts))
    tokens = told.pop("encoder_hidden_states")
    return model.network(x, 1000 * level, tokens, added_cond_kwargs=told or None).sample


@torch.no_grad()
def test_the_objective_is_the_squared_error_of_the_velocity(model):
    random = torch.Generator().manual_seed(0)
    x, noise = (torch.randn((2, *model.latent_shape), generator=random) for _ in range(2))
    level = shifted(torch.tensor([131, 872]) / 1000)
    share = level.view(-1, 1, 1, 1)
    wanted = (velocity(model, (1 - share) * x + share * noise, level, PROMPTS) - (noise - x)).square().mean()
    recipe = TrainingConfig(batch_size=2, min_snr_gamma=None, class_dropout=0)
    run = Run(model, recipe, model.codec.training_inputs(np.zeros((2, SIDE, SIDE, 3), np.uint8)), ["a", "b"], PROMPTS)
    batch = Batch(x, torch.tensor([130, 871]), noise, model.condition(PROMPTS), torch.ones(2), [0, 1], [0, 1])
    torch.testing.assert_close(run.objective(batch)[0], wanted, rtol=1e-5, atol=0)


def test_weights_at_a_samplers_noise_level_are_those_of_its_timestep(model):
    timesteps = torch.tensor([0, 130, 999])
    levels = 1000 * model.process.level(timesteps)
    torch.testing.assert_close(model.process.elbo_weights(levels), model.process.elbo_weights(timesteps))


def test_features_along_the_sampling_path(model):
    """Journey-TRAK's: at the sampler's noise levels, which lie between timesteps."""
    images, times = trajectory(model, GenerationSettings(3, 4, PROMPTS[0], 1.0))
    config = FeatureConfig(output="loss", timesteps=4, projection_dim=16)
    (found,) = FeatureExtractor(model, [config], timesteps=times)(images, "a", PROMPTS[0])
    assert [type(time) for time in times] == [float] * 4
    assert np.isfinite(found.parts).all()


@torch.no_grad()
def test_the_sampler_takes_euler_steps(model):
    for step in sample(model, [GenerationSettings(3, 4, PROMPTS[0], 1.0)]):
        last = step
    x, levels = initial_noise([3], model.latent_shape), FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    levels.set_timesteps(4)
    for level, following in zip(levels.sigmas, levels.sigmas[1:], strict=False):
        x = x + (following - level) * velocity(model, x, level[None], PROMPTS[:1])
    torch.testing.assert_close(last.x, x, rtol=1e-4, atol=1e-5)
