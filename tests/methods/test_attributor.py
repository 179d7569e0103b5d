"""Every method equals its formula; every ablation equals features computed for it directly."""

import numpy as np
import pytest

from dtrak.config import LAST, FeatureConfig
from dtrak.gradients.extractor import FeatureExtractor, extract_rows
from dtrak.linalg.kernel import Kernel
from dtrak.methods.attributor import Attributor
from dtrak.methods.base import LOSS, SQUARE
from dtrak.methods.influence import GradientMethod
from dtrak.methods.queries import generate_query
from dtrak.methods.query import Query
from dtrak.methods.readout import Readout
from dtrak.methods.registry import METHODS
from dtrak.methods.retrained import datamodel, empirical_influence
from dtrak.methods.selection import select
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.models.sampling import trajectory
from dtrak.utils.errors import DtrakError
from tests import oracle

GRADIENT = [m for m in METHODS.values() if isinstance(m, GradientMethod) and m.light]


def direct(attributor, config, rows=None, query=None):
    """The features of a setting, computed directly: training rows, or a query."""
    extractor = FeatureExtractor(attributor.variant(config.model), [config])
    if query is not None:
        return extractor(extractor.model.encode(query.pixels[None])[0], query.id, query.label)[0]
    return extract_rows(extractor, attributor.table, rows or range(attributor.table.train_size))[0]


@pytest.mark.parametrize("method", GRADIENT, ids=lambda m: m.name)
@pytest.mark.parametrize("damping", [None, 0.03])
def test_scores_and_ranks_equal_the_oracle(tiny, attributor, query, method, damping):
    if method.damping is None and damping is not None:
        with pytest.raises(DtrakError, match="takes no damping"):
            Setting(method.name, damping=damping)
        return
    setting = Setting(method.name, damping=damping)
    features = attributor.features(query, [setting])
    answer = attributor.attribute(query, features, setting, top=5)
    models = method.models_of(attributor, setting)
    timesteps = 5 if method.one_model else 1
    expected = []
    for model in models:
        apart = method.name == "das"
        config = FeatureConfig(output=method.output, timesteps=timesteps, projection_dim=64, model=model, apart=apart)
        train, x = direct(attributor, config), direct(attributor, config, query=query)
        rows, row, residuals = train.parts[:, 0], x.vector, None
        if apart:
            rows, row = (np.stack([oracle.mean_of_units(parts) for parts in side]) for side in (train.parts, [x.parts]))
            residuals = [oracle.das_residual(errors) for errors in np.sqrt(train.values[..., 0])]
            (row,) = row
        used = method.damping if damping is None else damping
        name = method.name.removesuffix("-ensemble")
        expected.append(oracle.method_scores(name, rows, row, used, residuals))
    expected = np.mean(expected, axis=0)
    np.testing.assert_allclose(answer.scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    best = [int(i) for i in np.argsort(-answer.scores)[:5] if answer.scores[i] > 0]
    worst = [int(i) for i in np.argsort(answer.scores)[:5] if answer.scores[i] < 0]
    assert [s.record.id for s in answer.proponents] == [tiny.table.train_ids[i] for i in best]
    assert [s.record.id for s in answer.opponents] == [tiny.table.train_ids[i] for i in worst]


@pytest.mark.parametrize("damping", [None, 0.03, "auto"])
@pytest.mark.parametrize("name", ["dtrak", "trak", "grad-dot"])
def test_a_search_finds_what_scoring_all_images_finds(attributor, query, monkeypatch, name, damping):
    if name == "grad-dot" and damping is not None:
        return
    setting = Setting(name, damping=damping)
    features = attributor.features(query, [setting])
    expected = attributor.attribute(query, features, setting, 6, exhaustive=True)
    assert expected.search is None
    found = attributor.attribute(query, features, setting, 6)
    with monkeypatch.context() as patch:
        patch.setattr(type(attributor), "scores", None)  # a page that lists sources asks for no other scores
        assert found.damping == pytest.approx(expected.damping)
        for one, other in ((found.proponents, expected.proponents), (found.opponents, expected.opponents)):
            assert [s.record.id for s in one] == [s.record.id for s in other]
            np.testing.assert_allclose([s.score for s in one], [s.score for s in other], rtol=1e-6)
        np.testing.assert_allclose(np.sort(found.search.sample()), np.sort(expected.scores), rtol=1e-5)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.score_and_place(0)[1] == expected.score_and_place(0)[1]


def test_journey_trak_looks_along_the_path(attributor):
    settings = GenerationSettings(3, 6, "round")
    query = generate_query(attributor, settings)
    setting = Setting("journey-trak", damping=0.1)
    scores, _ = attributor.scores(setting, query, attributor.features(query, [setting]))
    images, timesteps = trajectory(attributor.model, settings)
    config = FeatureConfig(output=LOSS, timesteps=1, projection_dim=64)
    one = [
        FeatureExtractor(attributor.model, [config], timesteps=[t])(image, query.id, "round")[0].vector
        for image, t in zip(images, timesteps, strict=True)
    ]
    train = attributor.index("trak").features
    expected = oracle.scores(train, np.mean(one, axis=0), 0.1)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(DtrakError, match="was not generated here"):
        attributor.needs(setting, Query(query.pixels, "round"))


@pytest.mark.parametrize("name", ["pixel-dot", "pixel-cos", "embedding-dot", "embedding-cos"])
def test_image_methods(tiny, attributor, query, name):
    scores, damping = attributor.scores(Setting(name), query, {})
    pixels = np.asarray(tiny.table.pixels[: tiny.table.train_size])
    if name.startswith("pixel"):
        train, x = pixels.reshape(14, -1) / 127.5 - 1, query.pixels.reshape(-1) / 127.5 - 1
    else:
        train, x = attributor.embedder(pixels), attributor.embedder(query.pixels[None])[0]
        alone = np.concatenate([attributor.embedder(p[None]) for p in pixels])
        np.testing.assert_allclose(train, alone, rtol=1e-3, atol=1e-3)
        assert train.shape == (14, 1280)
    np.testing.assert_allclose(scores, oracle.method_scores(name, train, x, None), rtol=1e-4, atol=1e-4)
    assert damping is None


def test_random_is_keyed_by_the_query(attributor, query):
    first, _ = attributor.scores(Setting("random"), query, {})
    again, _ = attributor.scores(Setting("random"), query, {})
    other, _ = attributor.scores(Setting("random"), Query(query.pixels[::-1].copy()), {})
    assert (first == again).all()
    assert (first != other).all()


def test_truth_methods_say_what_is_missing(fresh):
    with pytest.raises(DtrakError, match="retrained") as error:
        Attributor(fresh).scores(Setting("datamodel"), Query(np.asarray(fresh.table.pixels[0])), {})
    assert "retrain tiny --family fit" in error.value.hint


def test_truth_is_known_for_its_own_queries_only(attributor):
    drawn = Query(np.asarray(attributor.table.pixels[0]), "round")
    with pytest.raises(DtrakError, match="not evaluated on this image"):
        attributor.scores(Setting("datamodel"), drawn, {})


def test_truth_methods_equal_the_oracle():
    random = np.random.default_rng(0)
    masks, effect = random.random((200, 8)) < 0.5, random.standard_normal(8)
    losses = -masks.astype(float) @ effect
    np.testing.assert_allclose(empirical_influence(masks, losses), oracle.empirical_influence(masks, losses))
    np.testing.assert_allclose(datamodel(masks, losses), effect, atol=0.02)
    assert np.corrcoef(empirical_influence(masks, losses), effect)[0, 1] > 0.9


SELECTIONS = [
    Setting("dtrak", timesteps=1),
    Setting("dtrak", timesteps=5, draws=2),
    Setting("dtrak", timesteps=1, draws=2),
    Setting("dtrak", timesteps=3, strategy="cumulative"),
    Setting("dtrak", output="l2-norm"),
    Setting("dtrak", output="weighted-mse", timesteps=1),
    Setting("dtrak", output="weighted-mse"),
    Setting("trak", output="l1-norm", timesteps=1),
    Setting("dtrak", output="linf-norm"),
    Setting("trak", projection_seed=1),
    Setting("dtrak", checkpoint="checkpoint-0.50", timesteps=1),
    Setting("dtrak", checkpoint="member-1", timesteps=1),
]


@pytest.mark.parametrize("setting", SELECTIONS, ids=lambda s: s.text)
def test_a_selection_equals_features_computed_for_it_alone(tiny, attributor, query, setting):
    output = setting.output or METHODS[setting.method].output
    config = FeatureConfig(
        output=output,
        timesteps=setting.timesteps or 5,
        strategy=setting.strategy,
        noise_draws=setting.draws,
        projection_dim=64,
        projection_seed=setting.projection_seed,
        model=setting.checkpoint,
    )
    (side,) = attributor.sides(setting)
    expected = direct(attributor, config).parts[:, 0]
    np.testing.assert_allclose(
        attributor.readout(side).features, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
    vector = METHODS[setting.method].query_vector(
        attributor, setting, side, attributor.features(query, [setting]), query
    )
    wanted = direct(attributor, config, query=query).vector
    np.testing.assert_allclose(vector, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_a_smaller_projection_folds_the_buckets(attributor, query):
    (whole,), (part,) = attributor.sides(Setting("dtrak")), attributor.sides(Setting("dtrak", projection_dim=16))
    wide, narrow = attributor.readout(whole).features, attributor.readout(part).features
    expected = sum(wide[:, start : start + 16] for start in range(0, 64, 16))
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=1e-5 * np.abs(wide).max())


@pytest.mark.parametrize("k", [None, 8])
@pytest.mark.parametrize("name", ["dtrak", "relative-if", "das"])
def test_damping_auto_keeps_half_of_the_directions(attributor, query, name, k):
    setting = Setting(name, projection_dim=k, damping="auto")
    scores, damping = attributor.scores(setting, query, attributor.features(query, [setting]))
    values = np.linalg.svd(attributor.readout(attributor.sides(setting)[0]).features, compute_uv=False) ** 2
    kept = (values / (values + damping * values.sum() / len(values))).sum()
    assert kept == pytest.approx((values > values[0] * 1e-12).sum() / 2, rel=1e-3)
    explicit, _ = attributor.scores(setting.with_(damping=damping), query, attributor.features(query, [setting]))
    np.testing.assert_allclose(scores, explicit)


@pytest.mark.parametrize("text", ["gas,projection_dim=16", "trak,projection_seed=1,projection_dim=16"])
def test_fewer_columns_of_sets_that_are_not_kept_apart(attributor, query, text):
    setting = Setting.parse(text)
    scores, _ = attributor.scores(setting, query, attributor.features(query, [setting]))
    assert np.isfinite(scores).all()


def test_a_derived_output_along_the_path_is_refused(attributor):
    with pytest.raises(DtrakError, match="not stored"):
        attributor.sides(Setting("journey-trak", output="weighted-mse"))


def test_the_strategy_alone_takes_what_is_stored_of_it(attributor):
    (side,) = attributor.sides(Setting("dtrak", strategy="cumulative"))
    assert [t for t, _ in side.pairs] == [0, 1, 2, 3, 4]


def test_a_sweep_over_damping_equals_each_alone(attributor, query):
    features = attributor.features(query, [Setting("relative-if")])
    (side,) = attributor.sides(Setting("relative-if"))
    readout = attributor.readout(side)
    setting = Setting("relative-if")
    vector = METHODS["relative-if"].query_vector(attributor, setting, side, features, query)
    swept = readout.sweep(vector, np.array([0.1, 10.0]), "influence", False)
    for row, damping in zip(swept, (0.1, 10.0), strict=True):
        np.testing.assert_allclose(row, readout.scores(vector, damping, "influence"), rtol=1e-6)


def test_models_of_one_name_are_refused(tiny):
    from dtrak.study.folder import model_variants

    model = tiny.study.model.model_copy(update={"ensemble": tiny.study.model.checkpoints})
    with pytest.raises(DtrakError, match="Two models"):
        model_variants(type(tiny)(tiny.study.model_copy(update={"model": model})))


def test_what_is_not_stored_says_what_to_add(attributor):
    with pytest.raises(DtrakError, match="does not list") as error:
        attributor.sides(Setting("dtrak", timesteps=20))
    assert "timesteps: 20" in error.value.hint
    with pytest.raises(DtrakError, match="does not list"):
        attributor.sides(Setting("dtrak", checkpoint="nothing"))


@pytest.mark.parametrize("text", ["dtrak", "trak,timesteps=2,damping=0.1", "dtrak,damping=auto,normaliser=norm"])
def test_settings_survive_the_url(text):
    assert Setting.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    ["nothing", "dtrak,k=3", "dtrak,timesteps=0", "dtrak,damping=-1", "dtrak,damping=x", "dtrak,output=abs",
     "pixel-dot,timesteps=2", "gas,checkpoint=checkpoint-0.50", "grad-dot,damping=1", "dtrak,damping=nan", 
     "dtrak,damping=1e-17", "dtrak,draws=1000000000"],
)  # fmt: skip
def test_settings_refuse_nonsense(text):
    with pytest.raises(DtrakError):
        Setting.parse(text)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_readouts_equal_the_solve(shape):
    train = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    query = np.random.default_rng(1).standard_normal(shape[1]).astype(np.float32)
    kernel = Kernel.decompose(train)
    matrix = train.T.astype(float) @ train + 0.1 * kernel.mean_eigenvalue * np.eye(shape[1])
    solved = [np.linalg.solve(matrix, row) for row in train]
    np.testing.assert_allclose(kernel.influence_norms(train, 0.1), np.linalg.norm(solved, axis=1), rtol=1e-5)
    leverages = [row @ s for row, s in zip(train, solved, strict=True)]
    np.testing.assert_allclose(kernel.leverages(train, 0.1), leverages, rtol=1e-5)
    expected = oracle.scores(train, query, 0.1)
    for readout in (Readout(train), Readout(train, kernel=kernel)):
        np.testing.assert_allclose(readout.scores(query, 0.1), expected, rtol=1e-6, atol=1e-9)
        two = np.stack([query, -query])
        np.testing.assert_allclose(readout.inner(two, 0.1), [expected, -expected], rtol=1e-6, atol=1e-9)
        some = readout.inner_of([5, 0], two, 0.1)
        np.testing.assert_allclose(some, [expected[[5, 0]], -expected[[5, 0]]], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(readout.inner_of([5, 0], two, None)[0], train[[5, 0]] @ query, rtol=1e-5)


def test_blocks_and_timesteps_sum_to_the_whole(attributor, query):
    setting = Setting("dtrak")
    features = attributor.features(query, [setting])
    (side,) = attributor.sides(setting)
    (feature,) = features.values()
    np.testing.assert_allclose(
        feature.blocks.sum(0), feature.vector, rtol=1e-4, atol=1e-6 * np.abs(feature.vector).max()
    )
    parts = attributor.query_parts(side, features)
    assert len(parts) == 5
    np.testing.assert_allclose(parts.sum(0), feature.vector, rtol=1e-4, atol=1e-6 * np.abs(feature.vector).max())


def test_every_stored_output_is_listed_once(tiny):
    assert select(tiny.study, Setting("dtrak"), SQUARE, LAST).dim == 64


def test_models_of_each_kind(attributor):
    assert METHODS["tracin"].models_of(attributor, Setting("tracin")) == ["checkpoint-0.50", LAST]
    assert METHODS["dtrak-ensemble"].models_of(attributor, Setting("dtrak-ensemble")) == [LAST, "member-1"]
    assert METHODS["dtrak"].models_of(attributor, Setting("dtrak", checkpoint="member-1")) == ["member-1"]
