"""Hostile input of every kind ends in one of the program's own errors, never in a traceback.

In the suite each campaign is short and its examples are fixed; ``make fuzz`` (DTRAK_FUZZ=N) tries N per campaign.
"""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from dtrak.app.elements import plain
from dtrak.app.exports import no_formula
from dtrak.app.runs import png_bytes, read_settings
from dtrak.config import load_study
from dtrak.data.captions import captioned_images
from dtrak.data.files import Files
from dtrak.data.images import BadImage, open_image
from dtrak.execution.share import Share
from dtrak.methods.settings import Setting
from dtrak.models.lora_file import read_lora_file
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note
from dtrak.utils.text import parse_size
from tests.conftest import drawn_image
from tests.files import damaged, encoded

COUNT = int(os.environ.get("DTRAK_FUZZ", "0"))
CAMPAIGN = settings(
    max_examples=COUNT or 60, deadline=None, derandomize=not COUNT, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
TEXT = st.text(max_size=80)


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a/b.txt", b"hello" * 20)
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as file:
            info = tarfile.TarInfo("a/b.txt")
            info.size = 100
            file.addfile(info, io.BytesIO(b"x" * 100))
    return buffer.getvalue()


@st.composite
def some_damaged(draw, whole):
    """A file after :func:`damaged`."""
    flips = draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4))
    start, stop = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
    return damaged(whole, flips, start, stop, draw(st.sampled_from(["keep", "remove", "repeat", "cut"])))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["auto", "lora", "..", "/", "\0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(), inner, max_size=4), max_leaves=12,
)  # fmt: skip
KEYS = ("title", "data", "resolution", "model", "training", "features", "truth", "unrelated", "examples", "guidance")


@CAMPAIGN
@given(content=st.dictionaries(st.sampled_from(KEYS) | TEXT, VALUES, max_size=8))
def test_configurations(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({"resolution": 16, "data": {"kind": "imagefolder", "path": "x"}, **content}))
    try:
        load_study(str(path))
    except DtrakError:
        return


@CAMPAIGN
@given(content=st.binary(max_size=300) | TEXT.map(str.encode))
def test_yaml(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(DtrakError):
        load_study(str(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images(kind):
    @CAMPAIGN
    @given(content=some_damaged(encoded(drawn_image(1), kind)))
    def campaign(content):
        try:
            open_image(content, 10_000)
        except BadImage:
            return

    campaign()


@CAMPAIGN
@given(
    content=some_damaged(png_bytes(np.asarray(drawn_image(2)), {"seed": 1, "steps": 5, "label": None, "guidance": 1.0}))
)
def test_settings_in_a_png(content):
    try:
        read_settings(content)
    except DtrakError:
        return


@CAMPAIGN
@given(told=st.dictionaries(st.sampled_from(["seed", "steps", "label", "guidance", "negative"]), VALUES))
def test_parameters_in_a_png(told):
    given_ = {"seed": 1, "steps": 5, "label": None, "guidance": 1.0, **told}
    try:
        content = png_bytes(np.asarray(drawn_image(2)), given_)
    except (TypeError, ValueError):  # what JSON or PNG cannot hold is never written
        return
    try:
        read_settings(content)
    except DtrakError:
        return


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz"])
def test_archives(tmp_path, kind):
    place = tmp_path / f"odd.{'zip' if kind == 'zip' else f'tar.{kind}'}"

    @CAMPAIGN
    @given(content=some_damaged(archive(kind)))
    def campaign(content):
        place.write_bytes(content)
        try:
            Files(place).read("b.txt")
        except DtrakError:
            return

    campaign()


PAIR = {"unet.a.lora_A.weight": torch.zeros(2, 4), "unet.a.lora_B.weight": torch.zeros(4, 2)}
LORA = save(PAIR, {"ss_resolution": "64"})


@CAMPAIGN
@given(content=some_damaged(LORA))
def test_lora_files(tmp_path, content):
    (tmp_path / "odd.safetensors").write_bytes(content)
    try:
        read_lora_file(tmp_path / "odd.safetensors")
    except DtrakError:
        return


@CAMPAIGN
@given(text=TEXT | st.from_regex(r"(dtrak|trak|x)(,(timesteps|damping|output|strategy)=.{0,12})*", fullmatch=True))
def test_settings_in_a_link(text):
    try:
        assert Setting.parse(Setting.parse(text).text).text
    except DtrakError:
        return


@CAMPAIGN
@given(text=TEXT | st.from_regex(r"\d{0,6000}/\d{0,9}", fullmatch=True))
def test_shares_and_sizes(text):
    for parse in (Share.parse, lambda t: parse_size(t, "--ram")):
        try:
            parse(text)
        except DtrakError:
            continue


@CAMPAIGN
@given(content=st.binary(max_size=100))
def test_notes_and_tables(tmp_path, content):
    (tmp_path / "note.json").write_bytes(content)
    assert isinstance(read_note(tmp_path / "note.json"), dict)
    (tmp_path / "metadata.csv").write_bytes(content)
    assert captioned_images(tmp_path) == (0, 0)


@CAMPAIGN
@given(text=TEXT)
def test_text_for_markdown_and_spreadsheets(text):
    shown = plain(text)
    assert "](" not in shown.replace("\\]\\(", "")
    assert "<img" not in shown
    assert no_formula(text)[:1] not in ("=", "+", "@", "|")


def test_an_image_of_one_colour_is_an_image():
    buffer = io.BytesIO()
    Image.new("L", (3, 3)).save(buffer, "PNG")
    assert open_image(buffer.getvalue()).mode == "RGB"
