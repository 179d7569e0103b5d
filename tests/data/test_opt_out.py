"""Marks against training are found, reported and counted; and our own images say that they are generated."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from dtrak.app.runs import png_bytes, read_settings
from dtrak.build.data_summary import data_summary
from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.data.opt_out import opt_out_mark
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_json
from index_builder.cli import app
from tests.conftest import drawn_image, write_images, write_model, write_study

PLUS = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><plus:DataMining>'
    "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-GENAIMLTRAINING</plus:DataMining></x:xmpmeta>"
)


def png(**texts):
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    drawn_image(1).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "mark"),
    [
        (png(), ""),
        (png(Comment="a painting in naive style"), ""),
        (png(**{"XML:com.adobe.xmp": PLUS}), "PLUS Data Mining: DMI-PROHIBITED-GENAIMLTRAINING"),
        (png(Comment="NoAI please"), "the word noai"),
        (png() + b'{"cawg.ai_generative_training": {"use": "notAllowed"}}',
         "CAWG training-mining: ai_generative_training notAllowed"),
        (b"junk", ""),
    ],
)  # fmt: skip
def test_marks(content, mark):
    assert opt_out_mark(content) == mark


def test_prepare_reports_marks_and_the_summary_counts_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    write_images(tmp_path / "images", 6)
    write_model(tmp_path / "model")
    (tmp_path / "images" / "round" / "01.png").write_bytes(png(Comment="noai"))
    folder = StudyFolder(load_study(str(write_study(tmp_path))))
    prepare(folder.study, folder.data)
    assert [m["mark"] for m in read_json(folder.data / "report.json")["opted_out"]] == ["the word noai"]
    text = data_summary(folder)
    assert "against training (IPTC, PLUS, CAWG, noai): 1" in text
    assert "| CC0 |" in text
    assert str(tmp_path) not in text


def test_a_column_says_noai(tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    write_images(tmp_path / "images", 6)
    write_model(tmp_path / "model")
    table = tmp_path / "images" / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ",noai", lines[1] + ",yes", *(line + "," for line in lines[2:])]) + "\n")
    folder = StudyFolder(load_study(str(write_study(tmp_path))))
    prepare(folder.study, folder.data)
    assert [m["mark"] for m in read_json(folder.data / "report.json")["opted_out"]] == ["a noai column"]


def test_generated_images_carry_iptcs_fields(monkeypatch):
    told = {"seed": 1, "steps": 5, "label": "<a> & b", "guidance": 1.0, "model": "m"}
    pixels = np.asarray(drawn_image(2))
    with Image.open(io.BytesIO(png_bytes(pixels, told))) as image:
        packet = image.info["XML:com.adobe.xmp"]
    ElementTree.fromstring(re.sub(r"<\?xpacket.*?\?>", "", packet))  # well-formed
    assert "trainedAlgorithmicMedia" in packet
    assert "&lt;a&gt; &amp; b" in packet
    assert read_settings(png_bytes(pixels, told)).seed == 1
    monkeypatch.setenv("DTRAK_IPTC", "0")
    with Image.open(io.BytesIO(png_bytes(pixels, told))) as image:
        assert "XML:com.adobe.xmp" not in image.info


def test_the_ledger_on_the_command_line(tiny, source):
    result = CliRunner().invoke(app, ["ledger", str(source / "tiny.yaml"), "--schema"])
    assert "share" in result.output
    assert CliRunner().invoke(app, ["data-summary", str(source / "tiny.yaml")]).output.startswith("# Summary")
