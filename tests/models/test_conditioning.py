"""Prompts are encoded once and kept; text encoders take the device only while they encode."""

import contextlib

import pytest
import torch

from dtrak.models.families import base
from dtrak.utils import files
from tests.pipelines import PROMPTS, loaded

FAMILY = "flux"


@contextlib.contextmanager
def counted(model):
    """The prompts that are encoded within the block."""
    prompts, encode = [], model.pipe.encode_prompt

    def counting(prompt, *arguments, **given):
        prompts.append(prompt)
        return encode(prompt, *arguments, **given)

    model.pipe.encode_prompt = counting
    try:
        yield prompts
    finally:
        model.pipe.encode_prompt = encode


def test_captions_are_encoded_once_and_kept_on_disk(written, tmp_path):
    first, again = (loaded(written, FAMILY) for _ in range(2))
    expected = first.condition([*PROMPTS, None])
    for model in (first, again):
        model.conditioner.keep_in(tmp_path / "study" / "conditioning")
    (tmp_path / "study").mkdir()
    with counted(first) as prompts:
        first.conditioner.prepare([*PROMPTS, PROMPTS[0]])
    assert sorted({*prompts}) == sorted({*PROMPTS, ""})
    with counted(again) as prompts:
        again.conditioner.prepare(PROMPTS)
        torch.testing.assert_close(again.condition([*PROMPTS, None]), expected, rtol=0, atol=0)
        assert again.conditioner.free_condition(2).shape == (2, expected.shape[1])
    assert prompts == []


def test_a_damaged_file_is_encoded_again(written, tmp_path):
    model = loaded(written, FAMILY)
    expected = model.condition(PROMPTS)
    model = loaded(written, FAMILY)
    model.conditioner.keep_in(tmp_path)
    model.conditioner.prepare(PROMPTS)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    torch.testing.assert_close(model.condition(PROMPTS), expected, rtol=0, atol=0)
    model.conditioner.prepare(PROMPTS)
    torch.testing.assert_close(model.condition(PROMPTS), expected, rtol=0, atol=0)


def test_another_guidance_input_has_files_of_its_own(written, tmp_path):
    for name in ("flux", "flux-schnell"):  # which differ in what a prompt is cut to
        model = loaded(written, name)
        model.pipe.text_encoder.load_state_dict(loaded(written, FAMILY).pipe.text_encoder.state_dict())
        model.pipe.text_encoder_2.load_state_dict(loaded(written, FAMILY).pipe.text_encoder_2.state_dict())
        model.conditioner.keep_in(tmp_path / "conditioning")
        model.conditioner.prepare(PROMPTS)
    assert len(list((tmp_path / "conditioning").iterdir())) == 2 * len([*PROMPTS, "", "free"])


def test_nothing_is_kept_where_the_disk_is_nearly_full(written, tmp_path, monkeypatch):
    model = loaded(written, FAMILY)
    model.conditioner.keep_in(tmp_path / "conditioning")
    monkeypatch.setattr(files, "FREE", 2**80)
    model.conditioner.prepare(PROMPTS)
    assert not (tmp_path / "conditioning").exists()
    assert len(model.condition(PROMPTS)) == 2


class Part:
    """Notes where it is moved."""

    def __init__(self, name, moves):
        self.name, self._moves = name, moves

    def to(self, device):
        self._moves.append(f"{self.name} to {device}")

    def parameters(self):
        yield torch.zeros(100, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("free", "alone", "expected"),
    [
        ([1000, 1000], True, ["text to cuda:0", "text to cpu"]),
        ([10, 1000], True, ["network to cpu", "text to cuda:0", "text to cpu", "network to cuda:0"]),
        ([10, 10], True, ["network to cpu", "network to cuda:0"]),
        ([10], False, []),
    ],
    ids=["room", "alone", "small", "shared"],
)
def test_the_network_makes_room_only_where_nothing_else_uses_it(written, monkeypatch, free, alone, expected):
    moves = []
    model = loaded(written, FAMILY)
    model.encoders, model.network = [Part("text", moves)], Part("network", moves)
    monkeypatch.setattr(type(model), "device", torch.device("cuda:0"))
    left = iter(free)
    monkeypatch.setattr(base, "free_memory", lambda device: next(left))
    with contextlib.suppress(ZeroDivisionError), model._encoding(alone):
        raise ZeroDivisionError
    assert moves == expected
