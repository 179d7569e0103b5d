"""EK-FAC influence on the tiny study: scores, cached features and errors."""

import numpy as np
import pytest
import torch

from dtrak.analysis.significance import null_of
from dtrak.gradients.extractor import mean_gradient
from dtrak.gradients.projection import make_projector
from dtrak.linalg.kfac import Kfac
from dtrak.methods import kfac
from dtrak.methods.attributor import Attributor
from dtrak.methods.kfac import factors_path, fit_factors
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError

SETTING = Setting("ekfac", damping=0.3)


def test_scores_are_projected_products_with_the_preconditioned_gradient(tiny, attributor, query):
    fit_factors(attributor)
    scores, damping = attributor.scores(SETTING, query, attributor.features(query, [SETTING]))
    assert damping == 0.3
    config = attributor.sides(SETTING)[0].sources[0].config
    gradient = mean_gradient(attributor.model, query.pixels, query.id, query.label, config)
    solved = Kfac.load(factors_path(attributor)).precondition(gradient, 0.3)
    flat = torch.cat([value.flatten() for value in solved.values()])[None]
    projector = make_projector(config.projection, flat.shape[1], config.projection_dim, config.projection_seed, "cpu")
    expected = attributor.readout(attributor.sides(SETTING)[0]).features @ projector(flat)[0].numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_a_large_damping_gives_the_gradients_own_products(attributor, query):
    """(F + λI)⁻¹ → I/λ: scores over the factored layers rank like plain gradient products."""
    fit_factors(attributor)
    factors = Kfac.load(factors_path(attributor))
    config = attributor.sides(SETTING)[0].sources[0].config
    gradient = mean_gradient(attributor.model, query.pixels, query.id, query.label, config)
    solved = factors.precondition(gradient, 1e9)
    scale = 1e9 * factors.mean_eigenvalue
    for layer in factors.layers:
        torch.testing.assert_close(solved[f"{layer}.weight"] * scale, gradient[f"{layer}.weight"], rtol=1e-3, atol=1e-9)


def test_every_damping_of_the_evaluation_is_the_single_answer(attributor):
    from dtrak.methods.query import load_query_set
    from dtrak.methods.registry import METHODS

    fit_factors(attributor)
    asked = load_query_set(attributor.folder)
    matrices = METHODS["ekfac"].score_matrices(attributor, Setting("ekfac"), asked, [0.3, 3.0])
    one = asked.queries[0]
    alone, _ = attributor.scores(SETTING, one, attributor.features(one, [SETTING]))
    np.testing.assert_allclose(matrices[0][0], alone, rtol=1e-4, atol=1e-6 * np.abs(alone).max())


def test_what_is_not_fitted_is_said(tiny, monkeypatch):
    monkeypatch.setattr(kfac, "VERSION", -1)
    assert "not fitted yet" in Attributor(tiny).why_not("ekfac").message
    with pytest.raises(DtrakError, match="takes no timesteps"):
        Setting("ekfac", timesteps=2)


def test_fitting_is_done_once(attributor):
    fit_factors(attributor)
    assert not fit_factors(attributor)


def test_it_has_no_null_distribution_of_another_method(attributor):
    fit_factors(attributor)
    with pytest.raises(DtrakError, match="is not compared with unrelated"):
        null_of(attributor, Setting("ekfac"))
