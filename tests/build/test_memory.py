"""The estimate of GPU memory counts what a backward pass keeps."""

import torch
from torch.nn import functional as F

from dtrak.build.memory import Memory, bytes_beside, estimate_memory
from dtrak.models.families.base import Blank
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
    assert Memory(10e9, 10e9).cards is None
    assert Memory(10e9, 10e9, 0.0).cards == [24, 48, 80]
    assert Memory(20e9, 1e9, 2e9).cards == [48, 80]
    assert Memory(80e9, 0, 0.0).cards == []


def test_encoders_and_vae_are_counted_from_their_files(tmp_path):
    pipe = PIPELINES["sdxl"]()
    pipe.save_pretrained(tmp_path)
    parts = (pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert bytes_beside(tmp_path, 2) == 2 * sum(value.numel() for part in parts for value in part.state_dict().values())
