"""The estimate of GPU memory counts what a backward pass keeps."""

import pytest
import torch
from torch.nn import functional as F

from dtrak.build.memory import Memory, bytes_beside, estimate_memory
from dtrak.config import TrainingConfig
from dtrak.models.families import loader_of
from dtrak.models.families.base import Blank
from dtrak.models.lora import with_lora
from tests.pipelines import PIPELINES


def test_weights_and_activations_are_counted_once():
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        network[2].requires_grad_(False)
        x = torch.zeros(3, 8)
        found = estimate_memory(Blank(network, x, lambda: network(x)), 2)
    tuned, frozen = 8 * 16 + 16, 16 * 4 + 4
    assert found.weights == 2 * frozen + 8 * tuned
    assert found.activations == 2 * (3 * 8 + 3 * 16)  # the input, and what ReLU gives, which two layers keep


def test_attention_keeps_no_matrix_of_pairs():
    with torch.device("meta"):
        layer = torch.nn.Linear(8, 8, bias=False)
        x = torch.zeros(1, 1000, 8)

        def call():
            y = layer(x)
            return F.scaled_dot_product_attention(y, y, y)

        found = estimate_memory(Blank(layer, x, call), 4)
    assert found.activations == 4 * 1000 * 8 * 3  # x, y and the result


def test_cards_that_suffice_are_those_for_all_parts():
    assert Memory(10e9, 10e9).cards(20e9) is None
    assert Memory(10e9, 10e9, beside=0.0).cards(20e9) == [24, 48, 80]
    assert Memory(20e9, 1e9, beside=2e9).cards(21e9) == [48, 80]
    assert Memory(80e9, 0, beside=0.0).cards(80e9) == []


def test_the_lines_say_which_cards_suffice_with_checkpointing_and_without():
    assert Memory(20e9, 60e9, 1e9, 0.0).lines() == [
        "GPU memory: 80 GB for one image at one timestep (20 GB weights, 60 GB activations); a card of 80 GB does not "
        "suffice",
        "  with gradient checkpointing: 21 GB; cards of 24, 48, 80 GB suffice",
    ]


def test_the_vae_is_counted_from_its_file(tmp_path):
    pipe = PIPELINES["sdxl"]()
    pipe.save_pretrained(tmp_path)
    assert bytes_beside(tmp_path, 2) == 2 * sum(value.numel() for value in pipe.vae.state_dict().values())


class Blocks(torch.nn.Module):
    """Two blocks of two layers, that can be checkpointed as diffusers' networks can."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 8)) for _ in range(2)
        )
        self.checkpoint = None

    def enable_gradient_checkpointing(self, function):
        self.checkpoint = function

    def disable_gradient_checkpointing(self):
        self.checkpoint = None

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.checkpoint is None else self.checkpoint(block, x)
        return x


def test_checkpointing_keeps_the_inputs_of_blocks_and_the_largest_block():
    with torch.device("meta"):
        network = Blocks()
        x = torch.zeros(3, 8)
        found = estimate_memory(Blank(network, x, lambda: network(x)), 2)
    assert found.activations == 2 * 2 * (24 + 24)  # each block's input, and its sigmoid's output
    assert found.checkpointed == 2 * (2 * 24 + 48)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusion3Pipeline"])
def test_checkpointing_of_a_real_network_keeps_far_less(kind):
    loader = loader_of(None, kind)
    with torch.device("meta"):
        blank = loader.blank(loader.resolution, None)
        with_lora(blank.network, TrainingConfig(method="lora", lora_modules=loader.lora_modules))
        found = estimate_memory(blank, 2)
    assert found.checkpointed < found.activations / 2
