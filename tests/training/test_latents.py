"""What a VAE makes of the training images is kept for the next training."""

import pytest
import torch

from dtrak.models.codec import VaeCodec
from dtrak.study.folder import LATENTS
from dtrak.training.study import training_run


@pytest.fixture
def encoded(monkeypatch):
    """How often training images were encoded."""
    calls, encode = [], VaeCodec.training_inputs

    def counting(codec, pixels, flips=True):
        calls.append(len(pixels))
        return encode(codec, pixels, flips)

    monkeypatch.setattr(VaeCodec, "training_inputs", counting)
    return calls


def test_the_second_training_has_the_same_inputs_without_encoding(painted, encoded):
    kept = painted.root / LATENTS
    for path in kept.glob("*"):
        path.unlink()
    first, again = (training_run(painted, painted.study.training).batches.inputs for _ in range(2))
    assert encoded == [painted.table.train_size]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    torch.testing.assert_close(training_run(painted, painted.study.training).batches.inputs, first, rtol=0, atol=0)
    assert len(encoded) == 2


def test_flips_are_encoded_anew(painted):
    plain = painted.study.training.model_copy(update={"flip": False})
    mirrored = plain.model_copy(update={"flip": True})
    shapes = {training_run(painted, config).batches.inputs.shape[1] for config in (plain, mirrored)}
    assert shapes == {2, 4}
