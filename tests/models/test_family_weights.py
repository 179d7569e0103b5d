"""LoRA files of the families are read whole, at their strength, or refused."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from dtrak.config import TrainingConfig
from dtrak.models.families import loader_of
from dtrak.models.lora import add_lora
from dtrak.utils.errors import DtrakError
from tests.pipelines import PROMPTS, SIDE, WHOLE, loaded, pixels


@pytest.mark.parametrize("name", WHOLE)
def test_loras_of_diffusers_have_the_strength_that_their_notes_say(written, tmp_path, name):
    modules = loader_of(written / name).lora_modules
    recipe = TrainingConfig(method="lora", rank=2, alpha=6, lora_modules=modules)
    model = add_lora(loaded(written, name), recipe)
    for parameter in model.parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    layers, notes = get_peft_model_state_dict(model.network), model.network.peft_config["default"].to_dict()
    layers = {key.removeprefix("base_model.model."): value for key, value in layers.items()}
    kind, part = type(model.pipe), model.part
    wanted = {k: v for k, v in notes.items() if k in ("r", "lora_alpha", "target_modules", "lora_dropout")}
    wanted["target_modules"] = sorted(wanted["target_modules"])
    wanted["lora_dropout"] = 0.5  # of training; features are without it
    kind.save_lora_weights(tmp_path, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": wanted})
    again = loader_of(written / name).load(written / name, SIDE, tmp_path, torch.float32, PROMPTS, 3.5)
    x, t, told = model.encode(pixels(1)), torch.tensor([500]), model.condition(PROMPTS[:1])
    torch.testing.assert_close(again.predict(x, t, told), model.predict(x, t, told))


def test_a_loras_part_for_text_encoders_is_added(written, tmp_path):
    path = written / "sdxl"
    pipe = StableDiffusionXLPipeline.from_pretrained(path)
    layers = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "q_proj"]))
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
        layers[f"{part}_lora_adapter_metadata"] = {"r": 2, "lora_alpha": 6, "target_modules": ["to_q", "q_proj"]}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers)
    model = loader_of(path).load(path, SIDE, tmp_path, torch.float32, PROMPTS, 1.0)
    tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS[0], device="cpu", do_classifier_free_guidance=False)
    told = model.conditioner.told(model.condition(PROMPTS[:1]))
    torch.testing.assert_close(told["encoder_hidden_states"], tokens)
    bare = loader_of(path).load(path, SIDE, None, torch.float32, PROMPTS, 1.0)
    assert not torch.allclose(bare.conditioner.told(bare.condition(PROMPTS[:1]))["encoder_hidden_states"], tokens)
    assert all("lora_" in key for key in model.parameters())
    noise, t = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float32)}
    wanted = pipe.unet(noise, t, tokens, added_cond_kwargs=added, return_dict=False)[0]
    torch.testing.assert_close(model.predict(noise, t, model.condition(PROMPTS[:1])), wanted)
    state = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    other = {key.replace("text_encoder_2", "text_encoder_3"): value for key, value in state.items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(DtrakError, match="text_encoder_3"):
        loader_of(path).load(path, SIDE, tmp_path / "other.safetensors", torch.float32, PROMPTS, 1.0)


def test_what_would_be_left_out_silently_is_refused(written, tmp_path):
    path = written / "sd3"
    state = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 16),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(16, 2),
    }
    for name, more in (("alpha", "transformer_blocks.0.attn.to_q.alpha"), ("dora", "x.dora_scale")):
        save_file({**state, f"transformer.{more}": torch.ones(1)}, tmp_path / f"{name}.safetensors")
        with pytest.raises(DtrakError, match="does not match"):
            loader_of(path).load(path, SIDE, tmp_path / f"{name}.safetensors", torch.float32, PROMPTS, 3.5)


@pytest.mark.parametrize("name", WHOLE)
def test_a_lora_file_of_diffusers_is_read(written, tmp_path, name):
    part = "unet" if name == "sdxl" else "transformer"
    modules = loader_of(written / name).lora_modules
    model = add_lora(loaded(written, name), TrainingConfig(method="lora", rank=2, alpha=2, lora_modules=modules))
    for parameter in model.parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {
        f"{part}.{key.removeprefix('base_model.model.').replace('.default', '')}": value.detach()
        for key, value in model.parameters().items()
    }
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    path = written / name
    again = loader_of(path).load(path, SIDE, tmp_path, torch.float32, PROMPTS, 3.5)
    x, t = model.encode(pixels(1)), torch.tensor([500])
    told = model.condition(PROMPTS[:1])
    torch.testing.assert_close(again.predict(x, t, told), model.predict(x, t, told))
    assert len(again.parameters()) == len(model.parameters())
    save_file({key.replace(part, "other", 1): value for key, value in state.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(DtrakError, match="does not match"):
        loader_of(path).load(path, SIDE, tmp_path / "wrong.safetensors", torch.float32, PROMPTS, 3.5)
