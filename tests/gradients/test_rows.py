"""Per-row gradients from recorded inputs, against autograd for each row."""

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from dtrak.gradients.rows import Recorder

ROWS = 3


class Network(nn.Module):
    """Layers of every known kind, one of them used twice, one never, some with frozen weights.

    Convolutions: a stride, groups, and (as products of shifted pictures) a kernel of unequal sides, dilated and padded.
    """

    def __init__(self):
        super().__init__()
        self.narrow = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2, bias=False)
        self.point = nn.Conv2d(6, 6, 1)
        self.uneven = nn.Conv2d(6, 6, (3, 2), padding=(3, 1), dilation=(2, 3))
        self.norm = nn.GroupNorm(3, 6)
        self.names = nn.Embedding(5, 6)
        self.linear = nn.Linear(6, 6)
        self.tokens = nn.LayerNorm(6)
        self.unused = nn.Linear(2, 2)
        self.point.bias.requires_grad_(False)

    def forward(self, x, name):
        x = self.uneven(self.point(self.grouped(self.narrow(x))))
        x = self.norm(x) + self.linear(self.names(name))[:, :, None, None]
        tokens = self.tokens(x.flatten(2).transpose(1, 2))
        return torch.tanh(self.linear(tokens))


@pytest.fixture
def given():
    torch.manual_seed(0)
    network = Network().double()
    return network, torch.randn(ROWS, 4, 8, 8, dtype=torch.float64), torch.tensor([1, 4, 1])


def test_rows_equal_autograd(given):
    compare(*given)


def compare(network, x, name):
    recorder = Recorder(network)
    with recorder.recording():
        prediction = network(x, name)
    assert recorder.knows_layers
    assert recorder.keeps_apart(ROWS)
    parameters = [p for p in network.parameters() if p.requires_grad]
    cotangents = torch.randn(2, *prediction.shape, dtype=torch.float64)
    found = list(recorder.gradients(prediction, list(cotangents)))
    for row in range(ROWS):
        for i, cotangent in enumerate(cotangents[:, row : row + 1]):
            alone = network(x[row : row + 1], name[row : row + 1])
            expected = torch.autograd.grad(alone, parameters, cotangent, materialize_grads=True)
            torch.testing.assert_close([gradients[i][row] for gradients in found], list(expected))


def lengthened(network):
    network.names.register_forward_pre_hook(lambda layer, inputs: (inputs[0].repeat(2),))
    network.names.register_forward_hook(lambda layer, inputs, output: output[:ROWS])


UNKNOWN = {
    "a kind": lambda network: setattr(network, "point", nn.ConvTranspose2d(6, 6, 1).double()),
    "tied weights": lambda network: setattr(network.unused, "weight", network.tokens.weight),
    "no weight": lambda network: weight_norm(network.linear),
    "an embedding's options": lambda network: setattr(network.names, "padding_idx", 1),
    "rows mixed": lengthened,
    "inputs by name": lambda network: setattr(network, "tokens", ByName(network.tokens)),
}


class ByName(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(input=x)


@pytest.mark.parametrize("change", UNKNOWN)
def test_what_cannot_be_split_is_known(given, change):
    network, x, name = given
    UNKNOWN[change](network)
    recorder = Recorder(network)
    with recorder.recording():
        network(x, name)
    assert not (recorder.knows_layers and recorder.keeps_apart(ROWS))


def test_an_input_that_changed_since_is_known(given):
    network, x, name = given
    recorder = Recorder(network)
    with recorder.recording():
        network(x, name)
    assert recorder.keeps_apart(ROWS)
    x.zero_()
    assert not recorder.keeps_apart(ROWS)


def test_hooks_and_what_is_left_out(given):
    """A hook replaces a layer's output; another layer's output is unused; a third runs without gradients."""
    network, x, name = given
    network.linear.register_forward_hook(lambda layer, inputs, output: 2 * output)
    network.tokens.register_forward_hook(lambda layer, inputs, output: inputs[0])
    compare(network, x, name)
    grouped = network.grouped.forward
    network.grouped.forward = torch.no_grad()(grouped)
    compare(network, x, name)
