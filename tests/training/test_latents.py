"""What a VAE makes of the training images is kept for the next training."""

import pytest
import torch

from dtrak.config import load_study
from dtrak.models.codec import VaeCodec
from dtrak.study.folder import LATENTS, StudyFolder
from dtrak.training.study import training_run


@pytest.fixture
def folder(paintings, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(paintings / "workspace"))
    return StudyFolder(load_study(str(paintings / "paintings.yaml")))


@pytest.fixture
def encoded(monkeypatch):
    """How often training images were encoded."""
    calls, encode = [], VaeCodec.training_inputs

    def counting(codec, pixels, flips=True):
        calls.append(len(pixels))
        return encode(codec, pixels, flips)

    monkeypatch.setattr(VaeCodec, "training_inputs", counting)
    return calls


def test_the_second_training_has_the_same_inputs_without_encoding(folder, encoded):
    kept = folder.root / LATENTS
    for path in kept.glob("*"):
        path.unlink()
    first, again = (training_run(folder, folder.study.training).batches.inputs for _ in range(2))
    assert encoded == [folder.table.train_size]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    torch.testing.assert_close(training_run(folder, folder.study.training).batches.inputs, first, rtol=0, atol=0)
    assert len(encoded) == 2


def test_flips_are_encoded_anew(folder, encoded):
    plain = folder.study.training.model_copy(update={"flip": False})
    mirrored = plain.model_copy(update={"flip": True})
    shapes = {training_run(folder, config).batches.inputs.shape[1] for config in (plain, mirrored)}
    assert shapes == {2, 4}
