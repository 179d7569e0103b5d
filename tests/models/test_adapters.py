"""peft adapters: what is missing, pickled, damaged or made for another network is refused by name."""

import json
import shutil

import pytest
import torch
from diffusers import UNet2DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from dtrak.models.adapters import CONFIG, WEIGHTS, load_peft
from dtrak.utils.errors import DtrakError
from tests.conftest import UNET


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(UNet2DModel(**UNET), LoraConfig(r=2, target_modules=["conv1", "to_q"])).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def test_a_whole_adapter_is_loaded_and_tuned(adapter):
    network = load_peft(UNet2DModel(**UNET), adapter)
    tuned = {name for name, p in network.named_parameters() if p.requires_grad}
    assert tuned
    assert all("lora_" in name for name in tuned)
    assert network.config.sample_size == UNET["sample_size"]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(adapter, name):
    (adapter / name).unlink()
    with pytest.raises(DtrakError, match=name):
        load_peft(UNet2DModel(**UNET), adapter)


def test_pickled_weights_are_refused(adapter):
    state = load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    torch.save(state, adapter / "adapter_model.bin")
    with pytest.raises(DtrakError, match="safetensors"):
        load_peft(UNet2DModel(**UNET), adapter)


def test_damage_and_other_networks_are_refused(adapter):
    whole = (adapter / WEIGHTS).read_bytes()
    state = {name: tensor.clone() for name, tensor in load_file(adapter / WEIGHTS).items()}
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        (adapter / WEIGHTS).unlink()  # what is mapped to memory must not change
        (adapter / WEIGHTS).write_bytes(content)
        with pytest.raises(DtrakError, match="does not match"):
            load_peft(UNet2DModel(**UNET), adapter)
    (adapter / WEIGHTS).unlink()
    save_file({f"other.{name}": tensor for name, tensor in state.items()}, adapter / WEIGHTS)
    with pytest.raises(DtrakError, match="does not match"):
        load_peft(UNet2DModel(**UNET), adapter)
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).write_bytes(whole)
    settings = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**settings, "target_modules": ["no_such_module"]}))
    with pytest.raises(DtrakError, match="does not match"):
        load_peft(UNet2DModel(**UNET), adapter)
    (adapter / CONFIG).write_text("{")
    with pytest.raises(DtrakError, match="does not match"):
        load_peft(UNet2DModel(**UNET), adapter)
