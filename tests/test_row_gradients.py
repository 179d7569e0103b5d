"""Gradients of rows from recorded inputs, against autograd a row at a time."""

import pytest
import torch
from torch import nn

from dtrak.row_gradients import Recorder

ROWS = 3


class Network(nn.Module):
    """Layers of every known kind, one of them used twice, one never, some with frozen weights."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2, bias=False)
        self.point = nn.Conv2d(6, 6, 1)
        self.norm = nn.GroupNorm(3, 6)
        self.names = nn.Embedding(5, 6)
        self.linear = nn.Linear(6, 6)
        self.tokens = nn.LayerNorm(6)
        self.unused = nn.Linear(2, 2)
        self.point.bias.requires_grad_(False)

    def forward(self, x, name):
        x = self.point(self.grouped(self.narrow(x)))
        x = self.norm(x) + self.linear(self.names(name))[:, :, None, None]
        tokens = self.tokens(x.flatten(2).transpose(1, 2))
        return torch.tanh(self.linear(tokens))


@pytest.fixture
def given():
    torch.manual_seed(0)
    network = Network().double()
    return network, torch.randn(ROWS, 4, 8, 8, dtype=torch.float64), torch.tensor([1, 4, 1])


def test_rows_equal_autograd(given):
    network, x, name = given
    recorder = Recorder(network)
    with recorder.recording():
        prediction = network(x, name)
    assert recorder.knows
    assert recorder.kept_apart(ROWS)
    parameters = [p for p in network.parameters() if p.requires_grad]
    for i, cotangent in enumerate(torch.randn(2, *prediction.shape, dtype=torch.float64)):
        found = recorder.gradients(prediction, cotangent, retain_graph=i == 0)
        for row in range(ROWS):
            alone = network(x[row : row + 1], name[row : row + 1])
            expected = torch.autograd.grad(alone, parameters, cotangent[row : row + 1], materialize_grads=True)
            torch.testing.assert_close([gradient[row] for gradient in found], list(expected))


@pytest.mark.parametrize("why", ["kind", "tied", "mixed", "in place"])
def test_what_cannot_be_split_is_known(given, why):
    network, x, name = given
    if why == "kind":
        network.point = nn.ConvTranspose2d(6, 6, 1).double()
    elif why == "tied":
        network.unused.weight = network.linear.weight
    elif why == "mixed":
        network.names.register_forward_pre_hook(lambda layer, arguments: (arguments[0].repeat(2),))
        network.names.register_forward_hook(lambda layer, arguments, output: output[:ROWS])
    recorder = Recorder(network)
    with recorder.recording():
        network(x, name)
    if why == "in place":
        x.zero_()
    assert not (recorder.knows and recorder.kept_apart(ROWS))
