"""Loading model directories, errors for invalid ones, and fingerprints."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from dtrak.config import TrainingConfig
from dtrak.models.lora import add_lora
from dtrak.models.pixel import PixelModel, load_model
from dtrak.utils.errors import DtrakError
from tests.conftest import SIZE, write_model

LORA = TrainingConfig(method="lora", rank=2, alpha=2, lora_modules=("conv1", "to_q"))


def small_unet(channels=3, size=SIZE, classes=None):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=classes,
    )


def test_a_bare_unconditional_network_loads(tmp_path):
    small_unet().save_pretrained(tmp_path)
    model = load_model(tmp_path, SIZE)
    assert model.conditioner.class_index("anything") is None
    assert model.condition(["a", None]) is None


def test_folded_pixels_round_trip():
    model = PixelModel(small_unet(12, SIZE // 2), DDPMScheduler(), SIZE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    x = model.encode(pixels)
    assert tuple(x.shape[1:]) == model.latent_shape == (12, SIZE // 2, SIZE // 2)
    np.testing.assert_array_equal(model.decode(x), pixels)
    np.testing.assert_array_equal(model.decode(model.codec.flip(x[0])[None])[0], pixels[0, :, ::-1])


def test_an_adapter_saves_and_loads_to_the_same_prediction(tmp_path):
    small_unet(classes=4).save_pretrained(tmp_path / "base")
    model = add_lora(load_model(tmp_path / "base", SIZE, classes={"a": 1}, null_class=0), LORA)
    names = set(model.parameters())
    assert names
    assert all("lora" in n or "class_embedding" in n for n in names)
    with torch.no_grad():
        for p in model.parameters().values():
            p.copy_(torch.randn(p.shape).half())
    model.save(tmp_path / "adapter", torch.float16)
    assert not (tmp_path / "adapter" / "README.md").exists()
    again = load_model(tmp_path / "base", SIZE, tmp_path / "adapter")
    assert again.conditioner.classes == {"a": 1}
    assert set(again.parameters()) == names
    x, t, c = torch.randn(2, 3, SIZE, SIZE), torch.tensor([1, 500]), torch.tensor([1, 0])
    model.network.eval()
    torch.testing.assert_close(model.predict(x, t, c), again.predict(x, t, c))
    assert model.fingerprint() == again.fingerprint()


def test_a_merged_adapter_is_part_of_the_weights(tmp_path):
    small_unet(classes=4).save_pretrained(tmp_path / "base")
    model = add_lora(load_model(tmp_path / "base", SIZE, classes={"a": 1}, null_class=0), LORA)
    with torch.no_grad():
        for p in model.parameters().values():
            p.copy_(torch.randn(p.shape).half())
    model.save(tmp_path / "adapter", torch.float16)
    merged = load_model(tmp_path / "base", SIZE, merged=[tmp_path / "adapter"])
    assert merged.conditioner.classes == {"a": 1}
    assert not any("lora" in name for name in merged.parameters())
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            again = load_model(tmp_path / "base", SIZE, merged=[tmp_path / "adapter"])
            assert again.fingerprint() == merged.fingerprint()
    finally:
        torch.set_num_threads(threads)
    x, t, c = torch.randn(2, 3, SIZE, SIZE), torch.tensor([1, 500]), torch.tensor([1, 0])
    model.network.eval()
    torch.testing.assert_close(model.predict(x, t, c), merged.predict(x, t, c), rtol=1e-4, atol=1e-4)
    twice = load_model(tmp_path / "base", SIZE, tmp_path / "adapter", merged=[tmp_path / "adapter"])
    assert set(twice.parameters()) == set(model.parameters())
    assert not torch.allclose(twice.predict(x, t, c), merged.predict(x, t, c))


def test_a_fingerprint_sees_one_weight(tmp_path):
    model = PixelModel(small_unet(), DDPMScheduler(), SIZE)
    before = model.fingerprint()
    with torch.no_grad():
        next(iter(model.parameters().values())).view(-1)[0] += 1e-6
    assert model.fingerprint() != before


def test_refusals_say_what_to_do(tmp_path):
    with pytest.raises(DtrakError, match="no diffusers model"):
        load_model(tmp_path, SIZE)
    write_model(tmp_path / "pipeline")
    config = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(DtrakError, match="v_prediction"):
        load_model(tmp_path / "pipeline", SIZE)
    config = tmp_path / "pipeline" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(DtrakError, match="UNet2DConditionModel"):
        load_model(tmp_path / "pipeline", SIZE)
    with pytest.raises(DtrakError, match="channels"):
        PixelModel(small_unet(4), DDPMScheduler(), SIZE)
    with pytest.raises(DtrakError, match="resolution: 16"):
        PixelModel(small_unet(12, 8), DDPMScheduler(), 32)


def test_broken_weights_are_an_error(tmp_path):
    small_unet().save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"junk")
    with pytest.raises(DtrakError, match="could not be loaded"):
        load_model(tmp_path, SIZE)


def test_a_label_without_a_class(tmp_path):
    model = PixelModel(small_unet(classes=4), DDPMScheduler(), SIZE, {"a": 1})
    with pytest.raises(DtrakError, match="no class for the label"):
        model.conditioner.class_index("b")
