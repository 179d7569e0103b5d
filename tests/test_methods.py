"""Every method equals its formula, on the tiny study's own features."""

import numpy as np
import pytest

from dtrak.attribution import Attributor, Query
from dtrak.errors import DtrakError
from dtrak.kernel import Kernel
from dtrak.methods import METHODS
from tests import oracle


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("damping", [None, 0.03])
def test_scores_and_ranks_equal_the_oracle(tiny, name, damping):
    attributor, method = Attributor(tiny), METHODS[name]
    if method.damping is None and damping is not None:
        with pytest.raises(DtrakError, match="no damping"):
            attributor.attribute([], method, damping)
        return
    query = Query(np.asarray(tiny.table.pixels[-1]), "round")
    features = attributor.features(query)
    answer = attributor.attribute(features, method, damping, top=5)
    position = [c.output for c in tiny.study.features].index(method.output)
    train = attributor.index(method).features
    used = method.damping if damping is None else damping
    expected = oracle.method_scores(name, train, features[position].vector, used)
    np.testing.assert_allclose(answer.scores, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    best = [int(i) for i in np.argsort(-expected)[:5] if expected[i] > 0]
    worst = [int(i) for i in np.argsort(expected)[:5] if expected[i] < 0]
    assert [s.record.id for s in answer.proponents] == [tiny.table.train_ids[i] for i in best]
    assert [s.record.id for s in answer.opponents] == [tiny.table.train_ids[i] for i in worst]


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_influence_norms_equal_the_solve(shape):
    train = np.random.default_rng(0).standard_normal(shape)
    kernel = Kernel.decompose(train)
    matrix = train.T @ train + 0.1 * kernel.mean_eigenvalue * np.eye(shape[1])
    expected = [np.linalg.norm(np.linalg.solve(matrix, row)) for row in train]
    np.testing.assert_allclose(kernel.influence_norms(train, 0.1), expected, rtol=1e-8)
