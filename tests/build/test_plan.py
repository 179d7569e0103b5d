"""Cost estimates: traced operations against a manual count; and smaller batches when memory runs out."""

import json

import pytest
import torch

from dtrak.app.needs import needs_in_words
from dtrak.build.plan import DEVICES, count_passes, estimate, plan
from dtrak.build.status import commands_left
from dtrak.config import FeatureConfig, load_study
from dtrak.execution.memory import with_smaller_batches
from dtrak.gradients.extractor import FeatureExtractor
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.text import in_words, size_in_words
from index_builder.cli import app
from tests.helpers import runner


def by_hand(unet, size):
    """Multiplications and additions of all convolutions and linear layers, by hooks on a real pass."""
    total = []

    def count(module, inputs, output):
        positions = (
            output[0, 0].numel() if isinstance(module, torch.nn.Conv2d) else output[0].numel() // output.shape[-1]
        )
        total.append(2 * positions * module.weight.numel())

    hooks = [m.register_forward_hook(count) for m in unet.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    with torch.no_grad():
        unet(torch.zeros(1, 3, size, size), torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    return sum(total)


def test_operations_are_those_of_a_real_pass(tiny):
    passes = count_passes(tiny.study)
    model = load_study_model(tiny)
    layers = by_hand(model.network, 16)
    assert layers <= passes.forward <= 1.2 * layers  # plus attention's products
    assert passes.tuned == sum(p.numel() for p in model.parameters().values())
    assert 1.8 < passes.backward / passes.forward < 2.1


def test_an_adapter_has_a_cheaper_backward_pass():
    passes = count_passes(load_study("demo"))
    assert (passes.parameters, passes.tuned) == (9_353_608, 2_320_896)
    assert passes.backward < 1.5 * passes.forward


def test_the_plan_adds_up():
    study = load_study("cifar2")
    passes, steps = plan(study, 5000, 1000)
    train, index, _, truth, asked = steps
    both = passes.forward + passes.backward
    assert train.operations == 8000 * 128 * both
    assert index.operations == 5000 * 100 * (passes.forward + 2 * passes.backward)
    assert index.bytes == 3 * 2 * 5000 * 32_768 * 4
    assert truth.operations == 192 * (4000 * 128 * both + 2000 * 3000 * passes.forward)
    assert asked.operations < 0.5 * (index.operations + steps[2].operations)
    halves = [d.rate(study) for d in DEVICES]
    assert halves[3] == 8 * halves[1]
    assert train.seconds(DEVICES[3], study) == train.seconds(DEVICES[1], study)
    assert DEVICES[1].rate(load_study("artbench2")) == 2 * DEVICES[1].rate(study)


def test_a_study_that_is_not_built_says_what_it_needs(tmp_path, monkeypatch, source):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    folder = StudyFolder(load_study("cifar2"))
    assert [c.split()[3] for c in commands_left(folder)] == ["prepare", "train", "build"]
    text = needs_in_words(folder)
    for part in ("cifar-10-binary.tar.gz", "uoft-cs/cifar10", "train the model", "2 cores", "A100"):
        assert part in text
    art = StudyFolder(load_study("artbench2"))
    assert "train" in commands_left(art)[1]
    assert "lambdalabs/miniSD-diffusers" in needs_in_words(art)
    result = runner.invoke(app, ["plan", "cifar2", "celeba", "--json"])
    assert [one["passes"]["tuned"] for one in json.loads(result.stdout)] == [38_307_203, 118_795_011]
    assert "8 H100s" in runner.invoke(app, ["plan", "cifar10"]).stdout
    with pytest.raises(DtrakError, match="number of images"):
        estimate(StudyFolder(load_study(str(source / "tiny.yaml"))))


def test_numbers_in_words():
    assert [in_words(s) for s in (5.44, 80, 600, 7200, 3 * 86400, 2e9)] == [
        "5.4 s", "80 s", "10 min", "2 h", "3 days", "63.4 years"
    ]  # fmt: skip
    assert size_in_words(2_621_440_000) == "2.62 GB"


def test_memory_that_runs_out_is_met_by_smaller_batches(capsys):
    tried = []

    def work(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert with_smaller_batches(work, 16) == ("done", 2)
    assert tried == [16, 8, 4, 2]
    assert "batches of 2" in capsys.readouterr().err
    with pytest.raises(DtrakError, match="batch of one"):
        with_smaller_batches(lambda size: [][0] if size < 1 else _no_memory(), 4)
    with pytest.raises(RuntimeError, match="another"):
        with_smaller_batches(lambda size: _raise(RuntimeError("another error")), 4)


def _no_memory():
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


def _raise(error):
    raise error


def test_features_go_on_with_smaller_batches_and_stay_the_same(tiny, monkeypatch, capsys):
    model = load_study_model(tiny)
    x = model.encode(tiny.table.pixels[:1])[0]
    config = FeatureConfig(output="loss", timesteps=5, projection_dim=16)
    whole = FeatureExtractor(model, [config])(x, "a", "round")[0].vector
    real = model.predict

    def little_memory(x_t, timesteps, condition):
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(x_t, timesteps, condition)

    monkeypatch.setattr(model, "predict", little_memory)
    extractor = FeatureExtractor(model, [config])
    torch.testing.assert_close(
        torch.from_numpy(extractor(x, "a", "round")[0].vector), torch.from_numpy(whole), rtol=1e-4, atol=1e-6
    )
    assert extractor.batch_size == 2
    assert "Out of memory" in capsys.readouterr().err
