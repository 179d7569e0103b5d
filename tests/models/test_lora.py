"""LoRA as one product, (W + BA) x, where that is less work: the same values and gradients, and nothing stays so."""

import torch
from diffusers import UNet2DModel
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from dtrak.models.lora import lora_folded
from tests.conftest import SIZE, UNET

MODULES = ["conv1", "conv_out", "to_q", "to_out.0", "time_emb_proj", "conv_shortcut"]


def small_network(rank=4, **options):
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=MODULES, init_lora_weights=False, **options)
    return get_peft_model(UNet2DModel(**UNET), config)


def passed(network):
    torch.manual_seed(1)
    tuned = [p for p in network.parameters() if p.requires_grad]
    x, times, classes = torch.randn(3, 3, SIZE, SIZE), torch.tensor([1, 500, 999]), torch.tensor([0, 1, 2])
    out = network(x, times, class_labels=classes).sample
    return out, torch.autograd.grad(out.square().mean(), tuned)


def folded_layers(network):
    with lora_folded(network):
        return sum("forward" in vars(m) for m in network.modules())


def test_values_and_gradients_are_those_of_two_paths():
    network = small_network()
    out, gradients = passed(network)
    with lora_folded(network):
        folded, folded_gradients = passed(network)
    torch.testing.assert_close(folded, out, rtol=1e-4, atol=1e-5)
    for one, other in zip(folded_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-9)
    assert not any("forward" in vars(m) for m in network.modules())


def test_only_plain_layers_that_save_work_are_folded():
    layers = sum(isinstance(m, LoraLayer) for m in small_network().modules())
    assert 0 < folded_layers(small_network()) <= layers
    assert folded_layers(small_network(rank=1)) < folded_layers(small_network())
    assert folded_layers(small_network(lora_dropout=0.1).train()) == 0
    assert folded_layers(small_network(use_dora=True)) == 0
    merged = small_network()
    merged.merge_adapter()
    assert folded_layers(merged) == 0
    assert folded_layers(small_network().bfloat16()) == 0


def test_lora_that_is_switched_off_stays_off():
    network = small_network()
    with network.disable_adapter():
        off = network(torch.zeros(1, 3, SIZE, SIZE), 5, class_labels=torch.tensor([0])).sample
        with lora_folded(network):
            assert torch.equal(network(torch.zeros(1, 3, SIZE, SIZE), 5, class_labels=torch.tensor([0])).sample, off)
