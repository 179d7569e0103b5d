"""Networks with frozen weights of 8 bits: gradients stay those of the network that runs, close to the original's."""

import sys

import pytest
import torch

from dtrak.config import FeatureConfig, TrainingConfig
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.models.base import checkpoint_gradients
from dtrak.models.families import loader_of
from dtrak.models.lora import add_lora
from dtrak.training.loop import Run
from dtrak.utils.errors import DtrakError
from tests.pipelines import PROMPTS, SIDE, pixels

FAMILIES = ["sdxl", "flux", "z-image"]


def load(written, name, quantise="int8"):
    path = written / name
    model = loader_of(path).load(path, SIDE, None, torch.float32, PROMPTS, 3.5, quantise)
    return add_lora(model, TrainingConfig(method="lora", rank=2))


def features(model, apart):
    config = FeatureConfig(output="mean-squared-l2-norm", timesteps=3, projection_dim=64, apart=apart)
    (found,) = FeatureExtractor(model, [config])(model.encode(pixels(1))[0], "a", PROMPTS[0])
    return torch.from_numpy(found.parts).mean(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_the_network_that_runs_and_near_the_originals(written, name):
    model = load(written, name)
    kinds = {type(p.data).__name__ for p in model.network.parameters() if not p.requires_grad}
    assert "Int8Tensor" in kinds
    assert {type(p.data) for p in model.parameters().values()} == {torch.Tensor}
    mine, apart = features(model, apart=False), features(model, apart=True)
    torch.testing.assert_close(mine, apart, rtol=1e-4, atol=1e-5 * mine.abs().max().item())
    checkpoint_gradients(model.network)
    torch.testing.assert_close(features(model, apart=False), mine, rtol=1e-5, atol=1e-6 * mine.abs().max().item())
    original = features(load(written, name, None), apart=False)
    assert torch.cosine_similarity(mine, original, dim=0) > 0.98
    assert not torch.equal(mine, original)


def test_its_fingerprint_is_its_own_and_lasts(written):
    mine, again, original = (load(written, "flux", how).fingerprint() for how in ("int8", "int8", None))
    assert mine == again != original


def test_a_lora_is_trained_on_it(written):
    model = load(written, "flux")
    recipe = TrainingConfig(method="lora", steps=2, batch_size=2, warmup=1, learning_rate=1e-2, class_dropout=0)
    run = Run(model, recipe, model.codec.training_inputs(pixels(2)), ["a", "b"], PROMPTS)
    before = [p.detach().clone() for p in model.parameters().values()]
    run.train()
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters().values(), before, strict=True))


def test_without_torchao_the_error_says_what_to_install(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(DtrakError, match="needs torchao"):
        load(written, "flux")
