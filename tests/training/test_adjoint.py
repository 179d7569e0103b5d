"""The exact influence equals central finite differences over the samples' weights, in float64, for every ingredient."""

import numpy as np
import pytest
import torch

from dtrak.config import TrainingConfig
from dtrak.models.lora import add_lora
from dtrak.models.pixel import PixelModel, new_scheduler, new_unet
from dtrak.training.adjoint import Replay
from dtrak.training.loop import Run
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator

UNET = {
    "sample_size": 8, "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4, "num_class_embeds": 3,
}  # fmt: skip
IDS = [f"sample {i}" for i in range(6)]
PLAIN = {"steps": 7, "batch_size": 3, "warmup": 2, "learning_rate": 1e-3, "epsilon": 1e-4, "min_snr_gamma": None,
         "class_dropout": 0.0}  # fmt: skip
INGREDIENTS = {
    "plain": {},
    "averaging": {"ema_decay": 0.9},
    "weight decay": {"weight_decay": 0.1},
    "min-SNR": {"min_snr_gamma": 5.0},
    "dropout": {"dropout": 0.2},
    "class dropout and flips": {"class_dropout": 0.5, "flip": True},
    "clipping": {"clip": 0.05},
    "stratified timesteps": {"timestep_sampling": "stratified"},
    "another decay of the moments": {"betas": (0.8, 0.999)},
    "LoRA": {"method": "lora", "rank": 2, "alpha": 4, "lora_modules": ("conv1", "to_q"), "epsilon": 1e-3},
    "everything": {"ema_decay": 0.9, "weight_decay": 0.1, "min_snr_gamma": 5.0, "dropout": 0.2, "class_dropout": 0.5,
                   "flip": True, "clip": 0.05},
}  # fmt: skip


def run_of(weights, changes, dtype=torch.float64):
    torch.manual_seed(0)
    config = TrainingConfig(**{**PLAIN, **changes})
    model = PixelModel(new_unet(UNET), new_scheduler(), 8, {"a": 1, "b": 2}, 0)
    if config.method == "lora":
        add_lora(model, config)
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:  # from 0 the first step's slope is 1/ε
                torch.nn.init.normal_(parameter, std=0.1)
    model.network.to(dtype)
    model.dtype = dtype
    random = np.random.default_rng(0)
    inputs = model.codec.training_inputs(random.integers(0, 256, (6, 8, 8, 3), np.uint8))
    return Run(model, config, inputs, IDS, ["a", "b"] * 3, None, torch.tensor(weights, dtype=dtype))


def losses_of(run, count=2):
    random = keyed_generator("queries", 0, "")
    x, noise = (torch.from_numpy(random.standard_normal((count, 3, 8, 8))).to(run.model.dtype) for _ in range(2))

    def loss(row):
        times = torch.tensor([300])
        told = run.model.condition(["a"])
        predicted = run.model.predict(run.model.add_noise(x[[row]], noise[[row]], times), times, told)
        return (predicted - noise[[row]]).square().mean()

    return [lambda row=row: loss(row) for row in range(count)]


def loss_after(weights, changes):
    run = run_of(weights, changes)
    while run.step < run.steps:
        run.model.network.train()
        run._step()
    run.use_average()
    with torch.no_grad():
        return np.array([float(loss()) for loss in losses_of(run)])


@pytest.mark.parametrize("name", list(INGREDIENTS))
def test_the_derivative_equals_finite_differences(name):
    changes, ones = INGREDIENTS[name], np.ones(6)
    run = run_of(ones, changes)
    found = Replay(run).influences(losses_of(run)).numpy()
    for sample in (0, 4):
        step = 1e-5 * (np.arange(6) == sample)
        expected = (loss_after(ones + step, changes) - loss_after(ones - step, changes)) / 2e-5
        np.testing.assert_allclose(found[:, sample], expected, rtol=1e-6, atol=1e-8 * np.abs(found).max())
    assert np.abs(found).min() > 0


def test_it_can_be_taken_elsewhere_than_at_one():
    weights = np.array([0.5, 1.5, 0.0, 1.0, 0.7, 1.0])
    run = run_of(weights, {})
    found = Replay(run).influences(losses_of(run)).numpy()
    step = 1e-5 * (np.arange(6) == 1)
    expected = (loss_after(weights + step, {}) - loss_after(weights - step, {})) / 2e-5
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-5)
    assert (found[:, 2] == 0).all()


def test_parts_of_a_batch_and_queries_alone_change_nothing_but_rounding():
    run = run_of(np.ones(6), INGREDIENTS["everything"])
    whole = Replay(run).influences(losses_of(run)).numpy()
    split = run_of(np.ones(6), INGREDIENTS["everything"])
    split._part = 1
    np.testing.assert_allclose(Replay(split).influences(losses_of(split)).numpy(), whole, rtol=1e-8)
    alone = run_of(np.ones(6), INGREDIENTS["everything"])
    np.testing.assert_allclose(Replay(alone).influences(losses_of(alone)[1:]).numpy(), whole[1:], rtol=1e-8)


def test_a_killed_replay_goes_on(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    run = run_of(np.ones(6), {})
    whole = Replay(run).influences(losses_of(run)).numpy()
    forward = []
    for last in (5, 12, 19):  # while going forward, and in two stretches of the way back
        run = run_of(np.ones(6), {})
        plain = run._step
        monkeypatch.setattr(run, "_step", lambda plain=plain, run=run: (forward.append(run.step), plain()))

        def report(done, total, last=last):
            if done == last:
                raise Stop

        replay = Replay(run, tmp_path)
        with pytest.raises(Stop):
            replay.influences(losses_of(run), report)
    assert forward == [0, 1, 2, 3, 4, 4, 5, 6]  # no step again that was kept
    assert (tmp_path / "adjoint.safetensors").exists()
    run = run_of(np.ones(6), {})
    replay = Replay(run, tmp_path)
    np.testing.assert_array_equal(replay.influences(losses_of(run)).numpy(), whole)
    assert len(replay.growth) == 1 + 4  # 7 steps in stretches of 2


def test_float32_agrees_with_float64():
    run = run_of(np.ones(6), {})
    exact = Replay(run).influences(losses_of(run)).numpy()
    single = run_of(np.ones(6, np.float32), {}, torch.float32)
    losses = losses_of(single)
    found = Replay(single).influences(losses).numpy()
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.999


def test_what_cannot_be_differentiated_is_refused():
    with pytest.raises(DtrakError, match="bfloat16"):
        Replay(run_of(np.ones(6), {"precision": "bf16"}))
    run = run_of(np.ones(6), {})
    run._step()
    with pytest.raises(DtrakError, match="already begun"):
        Replay(run)
