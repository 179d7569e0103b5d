"""The paper's studies: random draws, parameter counts, recipes and archives."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from dtrak.config import load_study
from dtrak.data.releases import release_rows
from dtrak.data.rows import drawn
from dtrak.models.lora import with_lora
from dtrak.models.pixel import new_unet
from dtrak.training.loop import learning_rate

PAPER = ("cifar2", "cifar10", "celeba", "artbench2", "artbench5")
# Row numbers that the paper's notebooks print: of the training set, of the held-out images, and of two halves.
CIFAR2 = {
    "train": [17488, 17769, 25061, 7882, 4701],
    "heldout": [7405, 5226, 1363, 6615, 7612],
    "half 0": [10392, 44460, 16163, 49891, 13381],
    "half 8": [4871, 21837, 20107, 553, 20868],
}
CIFAR10 = {
    "heldout": [9128, 5468, 62, 2465, 2810],
    "half 0": [10936, 11178, 26489, 22034, 14307],
    "half 8": [6591, 35601, 1087, 17631, 28857],
}
CELEBA = {"train": [48803, 28992, 118843, 86803, 153263], "heldout": [167013, 179842, 176165, 167714, 180120]}


@pytest.mark.parametrize(("name", "count"), [("cifar2", 38_307_203), ("cifar10", 38_307_203), ("celeba", 118_795_011)])
def test_parameter_counts(name, count):
    with torch.device("meta"):
        unet = new_unet(load_study(name).model.unet)
    assert sum(p.numel() for p in unet.parameters()) == count


@pytest.mark.parametrize("name", ["artbench2", "artbench5"])
def test_the_lora_of_all_attention_has_the_papers_size(name):
    with torch.device("meta"):  # the architecture of Stable Diffusion 1.x
        unet = UNet2DConditionModel(sample_size=32, cross_attention_dim=768, attention_head_dim=8)
        network = with_lora(unet, load_study(name).training)
    tuned = {key: p for key, p in network.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in tuned.values()) == 25_509_888
    assert len({key.rpartition(".to_")[0] for key in tuned}) == 32


def test_celebas_draws_are_the_papers():
    assert drawn([None] * 162_770, 5000, 42, False)[:5].tolist() == CELEBA["train"]
    assert (162_770 + drawn([None] * 19_867, 1000, 42, False)[:5]).tolist() == CELEBA["heldout"]


def near(rows, labels, size, seed, per_class):
    """Whether printed rows fit a stratified draw where labels come in an unknown but random order.

    A stratified draw fixes the label of each place and the rank of its row among rows of that label; row
    numbers then follow from where that label's rows lie, which in a well-mixed data set is nearly evenly.
    """
    sorted_labels = [label for label in range(labels) for _ in range(per_class)]
    ranks = drawn(sorted_labels, size, seed, True)[: len(rows)] % per_class
    total = {5000: 50_000, 1000: 10_000}[per_class]
    spread = np.sqrt(ranks * (1 - ranks / per_class) * (total / per_class) ** 2 * 0.9) + 40
    return (np.abs(np.array(rows) - ranks * (total / per_class)) < 4 * spread).all()


def test_cifars_draws_fit_the_rows_that_the_paper_prints():
    assert near(CIFAR2["train"], 2, 5000, 42, 5000)
    assert near(CIFAR2["heldout"], 2, 1000, 42, 1000)
    assert near(CIFAR10["heldout"], 10, 1000, 42, 1000)
    for number in (0, 8):
        assert near(CIFAR10[f"half {number}"], 10, 25_000, 42 + 2 * number, 5000)
    assert not near(CIFAR2["train"], 2, 5000, 43, 5000)
    assert not near(CIFAR10["half 8"], 10, 25_000, 42 + 8, 5000)


def test_halves_of_cifar2_are_drawn_from_the_drawn_training_set():
    order = drawn([0] * 5000 + [1] * 5000, 5000, 42, True)
    labels, ranks = order // 5000, order % 5000
    for number in (0, 8):
        places = drawn([str(i) for i in labels], 2500, 42 + 2 * number, True)[:5]
        assert (np.abs(ranks[places] * 10 - CIFAR2[f"half {number}"]) < 500).all()


@pytest.mark.skipif(
    not load_study("cifar2").resolve(load_study("cifar2").data.path).exists(),
    reason="needs data/cifar-10-binary.tar.gz, which is not in the repository",
)
def test_cifars_draws_are_the_papers_on_the_real_archive():
    for name, printed in (("cifar2", CIFAR2), ("cifar10", CIFAR10)):
        study = load_study(name)
        path = study.resolve(study.data.path)
        train, test = (release_rows(study.data, path, split) for split in ("train", "test"))
        chosen = train.chosen(study.data.include, study.data.train_size, 42, True)
        assert chosen[:5] == printed.get("train", [0, 1, 2, 3, 4])
        assert test.chosen(study.data.include, study.data.heldout_size, 42, True)[:5] == printed["heldout"]
        labels = [train.labels[i] for i in chosen]
        for number in (0, 8):
            half = drawn(labels, len(labels) // 2, study.truth.first_seed["lds"] + 2 * number, True)
            assert [chosen[i] for i in half[:5]] == printed[f"half {number}"]


@pytest.mark.parametrize("name", PAPER)
def test_the_recipe_is_the_papers(name):
    study = load_study(name)
    recipe, sizes = study.training, {"cifar10": 50_000, "artbench5": 12_500}
    epochs = 100 if name.startswith("artbench") else 200
    assert recipe.steps == epochs * -(-sizes.get(name, 5000) // recipe.batch_size)
    assert recipe.warmup == recipe.steps // 10
    assert learning_rate(recipe, recipe.steps - 1, recipe.steps) < 1e-3 * recipe.learning_rate
    assert [c.output for c in study.features] == ["mean-squared-l2-norm", "loss"]
    assert {c.timesteps for c in study.features} == {100}
    assert {c.projection_dim for c in study.feature_sets} == {32_768}
    assert len(study.truth.judged_timesteps) == 1000
    assert study.truth.first_seed == {"lds": 42, "fit": 554}
