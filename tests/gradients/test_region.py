"""A part of an image: the mask, and that the feature is the gradient of the function of this part alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dtrak.config import FeatureConfig
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.gradients.projection import make_projector
from dtrak.gradients.region import Region
from dtrak.methods.settings import Setting
from dtrak.models.loading import load_study_model
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import feature_noise


def test_a_mask_covers_its_places():
    assert Region(0, 0, 1, 1).mask((2, 3)).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert Region(0.5, 0, 1, 0.5).mask((2, 2)).tolist() == [[0, 1], [0, 0]]
    assert Region(0, 0, 0.75, 1).mask((1, 2)).tolist() == [[1, 0.5]]
    left, right = Region(0, 0, 0.3, 1).mask((4, 5)), Region(0.3, 0, 1, 1).mask((4, 5))
    torch.testing.assert_close(left + right, torch.ones(4, 5))


def test_a_text_is_read_back_and_nonsense_refused():
    region = Region(0.25, 0, 0.75, 0.5)
    assert Region.parse(region.text) == region
    for text in ("", "1,2", "0,0,0,1", "0,0,2,1", "a,b,c,d", "nan,0,1,1", "0.5,0,0.2,1"):
        with pytest.raises(DtrakError):
            Region.parse(text)


@pytest.mark.parametrize("apart", [False, True])
def test_the_feature_is_the_gradient_of_the_masked_function(tiny, apart):
    model, region = load_study_model(tiny), Region(0, 0, 0.5, 0.75)
    configs = [
        FeatureConfig(output=output, timesteps=2, projection_dim=32, apart=apart)
        for output in ("mean-squared-l2-norm", "loss", "image-mean-squared-l2-norm")
    ]
    x = model.encode(tiny.table.pixels[:1])[0]
    found = FeatureExtractor(model, configs)(x, "a", "round", region)
    mask = torch.zeros(x.shape[-2:])
    mask[: x.shape[-2] * 3 // 4, : x.shape[-1] // 2] = 1
    times = torch.tensor(configs[0].timestep_list())
    noise = torch.from_numpy(feature_noise(0, "a", [(int(t), 0) for t in times], tuple(x.shape)))
    x_t = model.add_noise(x.expand(2, *x.shape), noise, times)
    parameters = list(model.parameters().values())
    projector = make_projector("sparse", sum(p.numel() for p in parameters), 32, 0, "cpu")
    alpha = model.process.alphas_cumprod[times].view(-1, 1, 1, 1)
    for config, feature in zip(configs, found, strict=True):
        predicted = model.predict(x_t, times, model.condition(["round"] * 2))
        seen = {
            "loss": predicted - noise, "mean-squared-l2-norm": predicted,
            "image-mean-squared-l2-norm": (x_t - (1 - alpha).sqrt() * predicted) / alpha.sqrt(),
        }[config.output]  # fmt: skip
        value = (seen * mask).square().flatten(1).mean(1).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        wanted = projector(gradient[None])[0].numpy()
        parts = np.atleast_2d(feature.parts).mean(0) if apart else feature.parts.ravel()
        np.testing.assert_allclose(parts, wanted, rtol=2e-3, atol=1e-4 * np.abs(wanted).max())


def test_only_methods_that_can_are_asked_about_a_part(attributor, query):
    asked = replace(query, region=Region(0, 0, 0.5, 1))
    setting = Setting("dtrak")
    whole, part = (attributor.scores(setting, q, attributor.features(q, [setting]))[0] for q in (query, asked))
    assert np.abs(whole - part).max() > 0
    for name in ("pixel-cos", "ekfac"):
        with pytest.raises(DtrakError, match="cannot be asked about a part"):
            attributor.scores(Setting(name), asked, {})
