"""Stable Diffusion with LoRA end to end: training, sampling, and features against the oracle."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from dtrak.build.retrain import retrain_subsets
from dtrak.config import FeatureConfig
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.gradients.passes import NoiseSchedule, gradient_chunks
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import load_subsets
from dtrak.models import lora, sampling
from dtrak.models.families.stable_diffusion import load_stable_diffusion
from dtrak.models.generation import GenerationSettings
from dtrak.models.loading import load_study_model
from dtrak.models.lora import lora_scaled
from dtrak.models.sampling import generate, generate_all, initial_noise, sample
from dtrak.training.loop import KeyedBatches
from dtrak.training.study import initial_model
from dtrak.utils.errors import DtrakError
from tests import oracle
from tests.stable_diffusion import SIDE

SCHEDULE = NoiseSchedule((0, 300, 900), draws=2, seed=3)


@pytest.fixture
def place(paintings):
    return paintings


@pytest.fixture
def folder(painted):
    return painted


@pytest.fixture
def model(folder):
    return load_study_model(folder)


@pytest.fixture
def x(folder, model):
    return model.encode(folder.table.pixels[:1])[0]


def test_only_the_adapter_is_tuned_and_training_moved_it(folder, model):
    start = initial_model(folder)
    assert model.parameters().keys() == start.parameters().keys()
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in model.parameters().items())
    moved = [name for name, p in model.parameters().items() if not torch.equal(p, start.parameters()[name])]
    assert len(moved) == len(model.parameters())
    assert not any(
        p.requires_grad for part in (model.codec.vae, model.conditioner.text_encoder) for p in part.parameters()
    )


@pytest.mark.parametrize("output", ["loss", "mean-squared-l2-norm", "weighted-mse"])
def test_gradients_of_the_conditional_branch_equal_the_oracle(model, x, output):
    told = model.condition(["a round painting"])
    (chunk,) = gradient_chunks(model, x, "a", told, SCHEDULE, [output])
    fast = (oracle.flat(chunk)[0][0] / len(SCHEDULE.pairs)).numpy()
    model.network.double()
    slow = oracle.gradient(model, x, "a", told.double(), output, SCHEDULE.timesteps, SCHEDULE.draws, SCHEDULE.seed)
    assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()


def test_batch_size_and_keeping_apart_change_nothing(model, x):
    configs = [FeatureConfig(output="loss", timesteps=4, projection_dim=32, apart=apart) for apart in (False, True)]
    whole, apart = FeatureExtractor(model, configs)(x, "a", "a square painting")
    (small,) = FeatureExtractor(model, configs[:1], batch_size=1)(x, "a", "a square painting")
    np.testing.assert_allclose(small.vector, whole.vector, atol=1e-4 * np.abs(whole.vector).max())
    np.testing.assert_allclose(apart.vector, whole.vector, atol=1e-3 * np.abs(whole.vector).max())


def test_a_caption_and_a_prompt_matter(folder, model, x):
    config = FeatureConfig(output="loss", timesteps=4, projection_dim=32)
    extractor = FeatureExtractor(model, [config])
    features = [extractor(x, "a", name)[0].vector for name in ("a round painting", "a square painting", None)]
    assert not np.allclose(features[0], features[1])
    assert not np.allclose(features[0], features[2])
    changed = folder.table.names[: folder.table.train_size]
    assert set(changed) == {"a round painting", "a square painting"}
    assert model.names == sorted(set(changed), key=lambda n: (-changed.count(n), n))


def test_drawing_follows_diffusers(place, folder):
    """dtrak's sampler against diffusers' pipeline, with the same noise, base weights, prompt and guidance."""
    base = load_stable_diffusion(place / "base", SIDE, None, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(place / "base", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    settings = GenerationSettings(5, 6, "a round painting", 3.0, negative="square")
    first = next(sample(base, [settings]))
    theirs = pipeline(
        settings.label, num_inference_steps=6, guidance_scale=3.0, negative_prompt="square",
        latents=initial_noise([5], base.latent_shape),
        height=SIDE, width=SIDE, output_type="latent",
    ).images  # fmt: skip
    *_, last = sample(base, [settings])
    assert first.timestep == max(pipeline.scheduler.timesteps.tolist())
    torch.testing.assert_close(last.x, theirs, rtol=1e-3, atol=1e-3)


def test_prompt_negative_guidance_and_lora_scale_each_matter(model, monkeypatch):
    plain = GenerationSettings(1, 3, "a round painting", 2.0)
    pictures = [
        generate(model, [s])
        for s in (
            plain,
            GenerationSettings(1, 3, "a square painting", 2.0),
            GenerationSettings(1, 3, "a round painting", 2.0, negative="square"),
            GenerationSettings(1, 3, "a round painting", 7.0),
            GenerationSettings(1, 3, "a round painting", 2.0, lora_scale=0.0),
        )
    ]
    for other in pictures[1:]:
        assert (other != pictures[0]).any()
    np.testing.assert_array_equal(generate(model, [plain]), pictures[0])
    half = [replace(plain, seed=seed, lora_scale=0.5) for seed in (1, 2, 3)]
    merged = generate(model, half)
    monkeypatch.setattr(sampling, "TOGETHER", 2)
    monkeypatch.setattr(lora, "MOST_MERGED", 0)
    unmerged = generate_all(model, half)
    assert np.abs(merged.astype(int) - unmerged).max() <= 1
    assert np.abs(merged[0].astype(int) - pictures[0][0]).max() > 1
    among = generate(model, [GenerationSettings(0, 3, "a square painting", 2.0), plain])
    assert np.abs(among[1].astype(int) - pictures[0][0]).max() <= 1


def test_without_its_lora_the_model_is_the_base(place, model):
    base = load_stable_diffusion(place / "base", SIDE, None, torch.float32)
    x_t, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 800])
    told = model.condition(["a round painting", None])
    with torch.no_grad(), lora_scaled(model.network, 0.0):
        torch.testing.assert_close(model.predict(x_t, t, told), base.predict(x_t, t, told))
    with torch.no_grad():
        assert not torch.allclose(model.predict(x_t, t, told), base.predict(x_t, t, told))


def test_training_draws_latents_and_drops_captions(folder):
    model, table = initial_model(folder), folder.table
    inputs = model.codec.training_inputs(table.pixels[:2])
    random = np.random.default_rng(0)
    drawn = torch.stack([model.codec.training_input(inputs[0], False, random) for _ in range(400)])
    mode = model.encode(table.pixels[:1])[0]
    deviation = drawn.std(0) / (inputs[0, 1] * model.codec.vae.config.scaling_factor)
    torch.testing.assert_close(deviation.mean(), torch.tensor(1.0), rtol=0.05, atol=0)
    assert (drawn.mean(0) - mode).abs().max() < 0.3 * drawn.std(0).max()
    mirrored = model.encode(np.asarray(table.pixels[:1])[:, :, ::-1])[0]
    torch.testing.assert_close(inputs[0, 2] * model.codec.vae.config.scaling_factor, mirrored, rtol=1e-4, atol=1e-4)
    config = folder.study.training.model_copy(update={"class_dropout": 1.0})
    names = ["a round painting"] * 2
    batch = KeyedBatches(model, config, inputs, table.train_ids[:2], names, torch.ones(2))(0)
    torch.testing.assert_close(batch.condition, model.condition([None, None]))


def test_half_precision_weights_still_give_float32_features(place, folder):
    adapter = folder.model_dir / "checkpoint-1.00"
    exact, rounded = (
        load_stable_diffusion(place / "base", SIDE, adapter, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    pixels = folder.table.pixels[:1]
    config = FeatureConfig(output="mean-squared-l2-norm", timesteps=4, projection_dim=64)
    found = []
    for model in (exact, rounded):
        assert all(p.dtype == torch.float32 for p in model.parameters().values())
        (feature,) = FeatureExtractor(model, [config])(model.encode(pixels)[0], "a", "a round painting")
        assert feature.parts.dtype == np.float32
        found.append(feature.vector)
    assert np.corrcoef(*found)[0, 1] > 0.98


def test_attribution_of_a_drawn_picture_by_all_methods(folder):
    attributor = Attributor(folder)
    settings = GenerationSettings(3, 5, "a square painting", 2.0)
    query = Query(generate(attributor.model, [settings])[0], settings.label, settings)
    for method in ("dtrak", "trak", "journey-trak", "grad-cos", "relative-if"):
        setting = Setting(method)
        scores, _ = attributor.scores(setting, query, attributor.features(query, [setting]))
        assert scores.shape == (folder.table.train_size,)
        assert np.isfinite(scores).all()
        assert scores.std() > 0
    other = attributor.scores(
        Setting("dtrak"), Query(query.pixels, "a round painting"),
        attributor.features(Query(query.pixels, "a round painting"), [Setting("dtrak")]),
    )[0]  # fmt: skip
    assert not np.allclose(other, attributor.scores(Setting("dtrak"), query, attributor.features(query))[0])


def test_subset_models_are_asked_with_prompts(folder):
    retrain_subsets(folder, "lds", 2, 1, Local(1))
    asked = query_set(folder)
    assert set(asked.labels[asked.heldout :]) <= {"a round painting", "a square painting"}
    assert asked.labels[0].endswith("painting")
    assert load_subsets(folder, "lds").losses.shape == (2, asked.heldout + 2)


def test_captions_are_part_of_the_data(folder):
    relabelled = folder.table.fingerprint()
    table = type(folder.table)(folder.table.folder, folder.table.records, folder.table.pixels, captioned=False)
    assert table.fingerprint() != relabelled


def test_refusals_say_what_to_do(place, folder, tmp_path):
    adapter = folder.model_dir / "checkpoint-1.00"
    with pytest.raises(DtrakError, match="could not be loaded"):
        load_stable_diffusion(tmp_path, SIDE, None, torch.float32)
    with pytest.raises(DtrakError, match="no LoRA"):
        load_stable_diffusion(place / "base", SIDE, tmp_path / "none", torch.float32)
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(DtrakError, match="does not match"):
        load_stable_diffusion(place / "base", SIDE, tmp_path / "odd.safetensors", torch.float32)
    with pytest.raises(DtrakError, match="multiple of the VAE"):
        load_stable_diffusion(place / "base", SIDE + 1, None, torch.float32)
    shutil.copytree(place / "base", tmp_path / "image")
    path = tmp_path / "image" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(DtrakError, match="predicts 'sample'"):
        load_stable_diffusion(tmp_path / "image", SIDE, None, torch.float32)
    shutil.copytree(adapter, tmp_path / "peft")
    state = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    save_file({n: torch.zeros(3, 3) for n in state}, tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(DtrakError, match="does not match"):
        load_stable_diffusion(place / "base", SIDE, tmp_path / "peft", torch.float32)


def test_fingerprints_see_the_loras_strength_and_the_vaes_factor(model):
    before = model.fingerprint()
    with lora_scaled(model.network, 5.0):
        assert model.fingerprint() != before
    assert model.fingerprint() == before
    model.codec.vae.register_to_config(scaling_factor=0.5)
    assert model.fingerprint() != before


def test_float16_cotangents_do_not_underflow(place, folder):
    adapter = folder.model_dir / "checkpoint-1.00"
    pixels = folder.table.pixels[:1]
    configs = [FeatureConfig(output="loss", timesteps=4, projection_dim=64, apart=apart) for apart in (False, True)]
    found = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load_stable_diffusion(place / "base", SIDE, adapter, dtype)
        for config in configs:
            (feature,) = FeatureExtractor(model, [config])(model.encode(pixels)[0], "a", "a round painting")
            found.append(feature.vector)
    assert np.corrcoef(found)[:4, :4].min() > 0.999
    assert np.corrcoef(found).min() > 0.98
