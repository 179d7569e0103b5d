"""On a machine with an NVIDIA GPU: the same answers as on the processor. Without one, these tests are skipped."""

import faiss
import numpy as np
import pytest
import torch

from dtrak.build.features import build_features, build_indexes
from dtrak.config import FeatureConfig
from dtrak.execution.engines import Local, local
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.gradients.projection import SparseProjector
from dtrak.index.faiss_index import AttributionIndex, build_index
from dtrak.index.store import FeatureStore
from dtrak.methods.attributor import Attributor
from dtrak.methods.settings import Setting
from dtrak.models.loading import load_study_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def test_features_equal_those_of_the_processor(tiny):
    configs = [FeatureConfig(output=name, timesteps=5, projection_dim=64) for name in ("mean-squared-l2-norm", "loss")]
    found = []
    for device in ("cpu", "cuda"):
        model = load_study_model(tiny, device)
        x = model.encode(tiny.table.pixels[:1]).to(device)[0]
        found.append([f.parts for f in FeatureExtractor(model, configs)(x, "a", "round")])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, atol=2e-3 * np.abs(a).max())


def test_the_projection_is_the_same_matrix():
    vectors = torch.randn(3, 1000, dtype=torch.float64)
    on_gpu = SparseProjector(1000, 64, 0, "cuda")(vectors.cuda()).cpu()
    torch.testing.assert_close(on_gpu, SparseProjector(1000, 64, 0)(vectors))


def test_a_study_is_built_and_asked_on_every_gpu(fresh, query):
    assert local(None, 1, "cuda").workers == torch.cuda.device_count()
    build_indexes(fresh, build_features(fresh, local(None, 1, "cuda"), device="cuda"))
    setting = Setting("dtrak")
    attributor = Attributor(fresh, "cuda")
    answer = attributor.attribute(query, attributor.features(query, [setting]), setting)
    fresh.features.rename(fresh.root / "of-gpus")
    build_indexes(fresh, build_features(fresh, Local()))
    attributor = Attributor(fresh)
    expected = attributor.attribute(query, attributor.features(query, [setting]), setting)
    np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-2 * np.abs(expected.scores).max())


@pytest.mark.skipif(getattr(faiss, "get_num_gpus", lambda: 0)() == 0, reason="needs faiss-gpu")
def test_faiss_searches_on_the_gpu(tiny):
    for folder in (path for path in tiny.index.iterdir() if path.is_dir()):
        store = FeatureStore.open(tiny.features / folder.name)
        index = AttributionIndex(build_index(store, tiny.index), store)
        assert not isinstance(index._indexed.index, faiss.IndexFlat)  # which is the processor's
        q = index.features[0].astype(np.float64)
        assert index.search(q, 5)[0].tolist() == np.argsort(-(index.features @ q), kind="stable")[:5].tolist()
