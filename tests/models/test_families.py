"""Text-to-image families: training loss, sampler, gradients and LoRA files equal those of diffusers."""

import json

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtrak.build.features import build_features, build_indexes
from dtrak.build.plan import count_passes
from dtrak.config import FeatureConfig, TrainingConfig, load_study
from dtrak.data import prepare
from dtrak.execution.engines import Local
from dtrak.gradients.extractor import FeatureExtractor, mean_gradient
from dtrak.gradients.outputs import OUTPUT_FUNCTIONS
from dtrak.methods.attributor import Attributor
from dtrak.methods.queries import generate_query
from dtrak.methods.settings import Setting
from dtrak.models.base import checkpoint_gradients, checkpoints_gradients
from dtrak.models.families import loader_of
from dtrak.models.generation import GenerationSettings
from dtrak.models.loading import load_study_model
from dtrak.models.lora import add_lora
from dtrak.models.sampling import initial_noise, sample
from dtrak.study.folder import StudyFolder
from dtrak.training.loop import Batch, Run
from dtrak.training.study import train_study
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import feature_noise
from tests.pipelines import PIPELINES, PROMPTS, SIDE, WHOLE, loaded, pixels, write_pipeline
from tests.stable_diffusion import write_lora_study, write_paintings


def trainers_loss(model, name, x0, noise, t):
    """The loss as diffusers' training scripts compute it, from the pipeline's own parts."""
    pipe = model.pipe
    if name.startswith("sdxl"):
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        noisy = scheduler.add_noise(x0, noise, t)
        tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
        sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2, dtype=torch.float32)
        added = {"text_embeds": pooled, "time_ids": sizes}
        predicted = pipe.unet(noisy, t, tokens, added_cond_kwargs=added, return_dict=False)[0]
        target = scheduler.get_velocity(x0, noise, t) if name == "sdxl-v" else noise
        return (predicted - target).square().mean()
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    indices = 999 - t  # the scripts' index into the descending schedule
    timesteps, sigmas = scheduler.timesteps[indices], scheduler.sigmas[indices].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    if name == "sd3":
        tokens, _, pooled, _ = pipe.encode_prompt(
            PROMPTS, None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=256
        )
        predicted = pipe.transformer(noisy, tokens, pooled, timesteps, return_dict=False)[0]
        return (predicted - (noise - x0)).square().mean()
    if name.startswith("flux2"):
        tokens, places = pipe.encode_prompt(PROMPTS, device="cpu", max_sequence_length=512)
        predicted = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy), timestep=timesteps / 1000,
            guidance=torch.full((2,), 3.5) if name == "flux2" else None, encoder_hidden_states=tokens, txt_ids=places,
            img_ids=pipe._prepare_latent_ids(noisy), return_dict=False,
        )[0]  # fmt: skip
        predicted = pipe._unpack_latents_with_ids(predicted, pipe._prepare_latent_ids(noisy))
        return (predicted - (noise - x0)).square().mean()
    if name == "qwen-image":
        tokens, mask = pipe.encode_prompt(PROMPTS, device="cpu")
        packed = pipe._pack_latents(noisy[:, None], *noisy.shape)
        predicted = pipe.transformer(
            hidden_states=packed, encoder_hidden_states=tokens, encoder_hidden_states_mask=mask,
            timestep=timesteps / 1000, img_shapes=[(1, SIDE // 4, SIDE // 4)] * 2, return_dict=False,
        )[0]  # fmt: skip
        predicted = pipe._unpack_latents(predicted, SIDE, SIDE, pipe.vae_scale_factor)[:, :, 0]
        return (predicted - (noise - x0)).square().mean()
    if name == "z-image":
        tokens, _ = pipe.encode_prompt(list(PROMPTS), device="cpu", do_classifier_free_guidance=False)
        given = list(noisy.unsqueeze(2).unbind(dim=0))
        predicted = -torch.stack(pipe.transformer(given, (1000 - timesteps) / 1000, tokens, return_dict=False)[0])
        return (predicted.squeeze(2) - (noise - x0)).square().mean()
    most = 512 if pipe.transformer.config.guidance_embeds else 256
    tokens, pooled, places = pipe.encode_prompt(PROMPTS, None, device="cpu", max_sequence_length=most)
    n, channels, height, width = noisy.shape
    packed = pipe._pack_latents(noisy, n, channels, height, width)
    ids = pipe._prepare_latent_image_ids(n, height // 2, width // 2, "cpu", torch.float32)
    guidance = torch.full((n,), 3.5) if pipe.transformer.config.guidance_embeds else None
    predicted = pipe.transformer(
        hidden_states=packed, timestep=timesteps / 1000, guidance=guidance, pooled_projections=pooled,
        encoder_hidden_states=tokens, txt_ids=places, img_ids=ids, return_dict=False,
    )[0]  # fmt: skip
    predicted = pipe._unpack_latents(predicted, SIDE, SIDE, pipe.vae_scale_factor)
    return (predicted - (noise - x0)).square().mean()


@torch.no_grad()
def trainers_latents(pipe, name, images):
    """The clean latents as diffusers' training scripts compute them."""
    config = pipe.vae.config
    if name == "qwen-image":
        mean, std = (
            torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (config.latents_mean, config.latents_std)
        )
        return ((pipe.vae.encode(images.unsqueeze(2)).latent_dist.mode() - mean) * (1.0 / std)).squeeze(2)
    shown = pipe.vae.encode(images).latent_dist.mode()
    if name.startswith("flux2"):
        mean, variance = pipe.vae.bn.running_mean.view(1, -1, 1, 1), pipe.vae.bn.running_var.view(1, -1, 1, 1)
        return (pipe._patchify_latents(shown) - mean) / torch.sqrt(variance + config.batch_norm_eps)
    return (shown - (config.shift_factor or 0)) * config.scaling_factor


@pytest.mark.parametrize("name", PIPELINES)
def test_the_objective_is_the_familys_training_loss(written, name):
    model = loaded(written, name)
    random = torch.Generator().manual_seed(1)
    images = torch.from_numpy(pixels(2)).permute(0, 3, 1, 2).float() / 127.5 - 1
    x0 = trainers_latents(model.pipe, name, images)
    torch.testing.assert_close(model.encode(pixels(2)), x0)
    noise, t = torch.randn(x0.shape, generator=random), torch.tensor([130, 871])
    recipe = TrainingConfig(batch_size=2, min_snr_gamma=None, class_dropout=0)
    run = Run(model, recipe, model.codec.training_inputs(pixels(2)), ["a", "b"], PROMPTS)
    batch = Batch(x0, t, noise, model.condition(PROMPTS), torch.ones(2), [0, 1], [0, 1])
    ours, _ = run.objective(batch)
    torch.testing.assert_close(ours, trainers_loss(model, name, x0, noise, t), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_sampler_is_the_pipelines(written, name):
    model = loaded(written, name)
    pipe, steps = model.pipe, 4
    if name.startswith("sdxl"):
        trained = DDPMScheduler.from_config(pipe.scheduler.config).config
        pipe.scheduler = DDIMScheduler.from_config(trained, clip_sample=False)
    scale = 1.0 if name in ("flux", "flux-schnell", "flux2") else 2.0
    settings = GenerationSettings(3, steps, PROMPTS[0], scale)
    for step in sample(model, [settings]):
        last = step
    noise = initial_noise([3], model.latent_shape)
    given = {"num_inference_steps": steps, "output_type": "latent", "height": SIDE, "width": SIDE}
    pipe.set_progress_bar_config(disable=True)
    wanted = last.x
    if name == "flux2":
        found = pipe(prompt=PROMPTS[0], latents=noise, guidance_scale=3.5, **given).images
        found = pipe._unpack_latents_with_ids(found, pipe._prepare_latent_ids(noise))
    elif name == "flux2-klein":
        found = pipe(prompt=PROMPTS[0], latents=noise, guidance_scale=scale, **given).images
        wanted = model.codec.restored(last.x)
    elif name == "qwen-image":
        packed = pipe._pack_latents(noise[:, None], *noise.shape)
        found = pipe(PROMPTS[0], negative_prompt="", latents=packed, true_cfg_scale=scale, **given).images
        found = pipe._unpack_latents(found, SIDE, SIDE, pipe.vae_scale_factor)[:, :, 0]
    elif name == "z-image":
        found = pipe(PROMPTS[0], latents=noise, guidance_scale=scale - 1, **given).images
    elif name.startswith("flux"):
        packed = pipe._pack_latents(noise, *noise.shape)
        most = 512 if name == "flux" else 256
        found = pipe(PROMPTS[0], latents=packed, guidance_scale=3.5, max_sequence_length=most, **given).images
        found = pipe._unpack_latents(found, SIDE, SIDE, pipe.vae_scale_factor)
    else:
        found = pipe(PROMPTS[0], latents=noise, guidance_scale=scale, **given).images
    torch.testing.assert_close(wanted, found, rtol=1e-4, atol=1e-5)
    assert model.decode(last.x).shape == (1, SIDE, SIDE, 3)


OUTPUTS = ["loss", "mean-squared-l2-norm", "noise-mean-squared-l2-norm", "image-mean-squared-l2-norm", "image-mean"]


@pytest.mark.parametrize("name", ["sdxl-v", "sd3", "flux", "flux2", "qwen-image", "z-image"])
def test_gradients_equal_plain_ones_in_double_precision(written, name):
    modules = loader_of(written / name).lora_modules
    model = add_lora(loaded(written, name), TrainingConfig(method="lora", rank=2, alpha=2, lora_modules=modules))
    for parameter in model.parameters().values():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    assert all("lora_" in key for key in model.parameters())  # never a gradient of a frozen weight
    configs = [FeatureConfig(output=output, timesteps=2, projection_dim=32) for output in OUTPUTS]
    quick = [mean_gradient(model, pixels(1)[0], "a", PROMPTS[0], config) for config in configs]
    apart = FeatureExtractor(model, [c.model_copy(update={"apart": True}) for c in configs])
    plain = FeatureExtractor(model, configs)
    x = model.encode(pixels(1))[0]
    for one, other in zip(apart(x, "a", PROMPTS[0]), plain(x, "a", PROMPTS[0]), strict=True):
        np.testing.assert_allclose(one.parts.mean(0), other.parts.ravel(), rtol=1e-3, atol=1e-6)
    model.network.double()
    model.dtype = torch.float64
    times = torch.tensor(configs[0].timestep_list())
    noise = torch.from_numpy(feature_noise(0, "a", [(int(t), 0) for t in times], tuple(x.shape))).double()
    images = x.double().expand(2, *x.shape)
    told = model.condition([PROMPTS[0]] * 2).double()
    for output, found in zip(OUTPUTS, quick, strict=True):
        x_t = model.add_noise(images, noise, times)
        predicted = model.predict(x_t, times, told)
        value = oracle_output(model, name, output, x_t, predicted, images, noise, times)
        wanted = torch.autograd.grad(value.mean(), list(model.parameters().values()))
        for key, gradient in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(found[key].double(), gradient, rtol=2e-3, atol=2e-6, msg=f"{output} {key}")


def oracle_output(model, name, output, x_t, predicted, x0, noise, times):
    """f of each row, spelt out."""
    if name == "sdxl-v":
        alpha = DDPMScheduler.from_config(model.pipe.scheduler.config).alphas_cumprod[times].double().view(-1, 1, 1, 1)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * x0
        as_noise, as_image = (
            (1 - alpha).sqrt() * x_t + alpha.sqrt() * predicted,
            alpha.sqrt() * x_t - (1 - alpha).sqrt() * predicted,
        )
    else:
        sigma = model.process.sigmas[times].double().view(-1, 1, 1, 1)
        target, as_noise, as_image = noise - x0, x_t + (1 - sigma) * predicted, x_t - sigma * predicted
    if output == "loss":
        return (predicted - target).square().flatten(1).mean(1)
    shown = {"noise": as_noise, "image": as_image}.get(output.split("-")[0], predicted)
    return (shown if output.endswith("-mean") else shown.square()).flatten(1).mean(1)


@pytest.mark.parametrize("name", WHOLE)
def test_from_a_pipeline_to_an_answer(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    write_pipeline(name, tmp_path / "base")
    write_paintings(tmp_path / "paintings")
    path = write_lora_study(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["features"].append({"output": "noise-mean-squared-l2-norm", "timesteps": 4, "projection_dim": 48})
    content["training"] |= {"lora_modules": [], "timestep_sampling": "logit-normal"}
    path.write_text(yaml.safe_dump(content))
    folder = StudyFolder(load_study(str(path)))
    prepare(folder.study, folder.data)
    (adapter,) = train_study(folder)
    build_indexes(folder, build_features(folder, Local(1)))
    attributor = Attributor(folder)
    query = generate_query(attributor, GenerationSettings(1, 3, PROMPTS[0], 2.0))
    for setting in (Setting("dtrak"), Setting("trak"), Setting("dtrak", output="noise-mean-squared-l2-norm")):
        answer = attributor.attribute(query, attributor.features(query, [setting]), setting)
        assert np.isfinite(answer.scores).all()
        assert np.ptp(answer.scores) > 0
    passes = count_passes(folder.study)
    model = load_study_model(folder)
    assert passes.tuned == sum(p.numel() for p in model.parameters().values())
    again = load_study_model(StudyFolder(folder.study))
    assert again.fingerprint() == model.fingerprint()
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({n: w + 0.01 for n, w in weights.items()}, adapter / "adapter_model.safetensors")
    assert load_study_model(StudyFolder(folder.study)).fingerprint() != model.fingerprint()


def test_elbo_weights_follow_the_static_shift(written):
    process = loaded(written, "sd3").process
    sigmas = process.sigmas.double()
    for t in (0, 1, 500, 999):
        before = sigmas[t - 1] if t else 0.0
        wanted = (1 - sigmas[t]) / sigmas[t] * (sigmas[t] - before)
        torch.testing.assert_close(process.elbo_weights(torch.tensor([t]))[0].double(), wanted, rtol=1e-3, atol=1e-9)


def test_an_unknown_family_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(DtrakError, match="WanPipeline") as error:
        loader_of(tmp_path)
    assert "FluxPipeline" in error.value.hint
    with pytest.raises(DtrakError, match="no supported pipeline"):
        loader_of(tmp_path / "nothing")


def test_schnell_takes_no_guidance(written):
    assert loaded(written, "flux-schnell").guidance is None
    dev = loaded(written, "flux")
    other = loader_of(written / "flux").load(written / "flux", SIDE, None, torch.float32, PROMPTS, 1.0)
    assert dev.guidance == 3.5
    assert dev.fingerprint() != other.fingerprint()


def test_views_of_an_output_function_are_named():
    from typing import get_args

    from dtrak.config import OutputName
    from dtrak.gradients.outputs import split_view

    assert {split_view(name)[1] for name in get_args(OutputName)} == set(OUTPUT_FUNCTIONS)


@pytest.mark.parametrize("apart", [False, True], ids=["summed", "apart"])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "qwen-image", "z-image"])
def test_gradient_checkpointing_changes_no_gradient(written, name, apart):
    found = []
    for checkpointing in (False, True):
        model = add_lora(loaded(written, name), TrainingConfig(method="lora", rank=2))
        for parameter in model.parameters().values():
            parameter.data.add_(0.01)
        if checkpointing:
            checkpoint_gradients(model.network)
            assert checkpoints_gradients(model.network)
        outputs = ("mean-squared-l2-norm", "loss")
        configs = [FeatureConfig(output=o, timesteps=3, projection_dim=32, apart=apart) for o in outputs]
        extractor = FeatureExtractor(model, configs)
        features = extractor(model.encode(pixels(1))[0], "a", PROMPTS[0])
        recipe = TrainingConfig(batch_size=2, class_dropout=0)
        run = Run(model, recipe, model.codec.training_inputs(pixels(2)), ["a", "b"], PROMPTS)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention is differentiable once only
            objective, _ = run.objective(run.batches(0))
            slope = torch.autograd.grad(objective, list(run.parameters.values()), create_graph=True)
            curvature = torch.autograd.grad(sum(s.square().sum() for s in slope), list(run.parameters.values()))
        found.append([*(torch.from_numpy(f.parts) for f in features), *run.gradients(0)[0], *curvature])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-5, atol=1e-7)
