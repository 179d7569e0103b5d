"""Every image file is read or listed as rejected, and preparation continues."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dtrak.build.pipeline import prepare_data
from dtrak.config import load_study
from dtrak.data import BadImage, load_table, open_image, prepare, to_model_pixels
from dtrak.data.table import split_of, verify_data
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from tests.conftest import drawn_image, write_images, write_study
from tests.files import bomb, encoded


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (8, 8), (200, 200, 200))
    if mode.startswith("I"):
        image = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16 if mode == "I;16" else np.int32))
    else:
        image = image.convert(mode)
    content = encoded(image, "TIFF" if mode in ("CMYK", "I") else "PNG")
    pixels = np.asarray(open_image(content))
    assert pixels.shape == (8, 8, 3)
    if mode != "1":
        assert abs(int(pixels[0, 0, 0]) - 200) <= 4  # the web palette has no 200


def test_transparency_is_white():
    assert np.asarray(open_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))))).min() == 255


@pytest.mark.parametrize(
    "content", [b"", b"no image", encoded(drawn_image(0), "JPEG")[:200], bomb()], ids=["empty", "text", "cut", "bomb"]
)
def test_bad_files_are_refused(content):
    with pytest.raises(BadImage):
        open_image(content)


def test_pixels_are_centred_and_square():
    image = Image.new("RGB", (40, 20), "red")
    assert to_model_pixels(image, 16).shape == (16, 16, 3)


def test_prepare_names_what_it_leaves_out(tmp_path):
    write_images(tmp_path / "images", 8)
    (tmp_path / "images" / "round" / "cut.jpg").write_bytes(encoded(drawn_image(1), "JPEG")[:150])
    (tmp_path / "images" / "square" / "copy.png").write_bytes((tmp_path / "images/square/00.png").read_bytes())
    (tmp_path / "images" / "metadata.csv").unlink()
    study = load_study(str(write_study(tmp_path)))
    report = prepare(study, tmp_path / "data")
    assert [r["id"] for r in report.refused] == ["round/cut.jpg"]
    assert [{d["id"], d["same_as"]} for d in report.duplicates] == [{"square/copy.png", "square/00.png"}]
    table = load_table(tmp_path / "data")
    assert report.train + report.heldout == len(table.records) == 8
    assert {r.label for r in table.records} == {"round", "square"}


def test_parquet_is_the_same_road(tmp_path):
    rows = [
        {"image": {"bytes": encoded(drawn_image(i)), "path": None}, "artist": f"a{i}", "style": "round", "key": f"k{i}"}
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    data = {"kind": "parquet", "path": "data.parquet", "id_column": "key", "licence": "CC0", "holdout": 0}
    study = load_study(str(write_study(tmp_path, data=data)))
    assert prepare(study, tmp_path / "out").train == 4
    record = load_table(tmp_path / "out").records[2]
    assert (record.id, record.creator, record.label, record.licence) == ("k2", "a2", "round", "CC0")
    wrong = load_study(str(write_study(tmp_path, data=data | {"image_column": "picture"})))
    with pytest.raises(DtrakError, match="image_column"):
        prepare(wrong, tmp_path / "out2")


@pytest.mark.parametrize(("words", "held"), [(("train", "heldout"), 8), (("train", "test"), 2)])
def test_a_split_column_says_what_is_held_out_if_it_speaks_of_nothing_else(tmp_path, words, held):
    write_images(tmp_path / "images")
    lines = (tmp_path / "images" / "metadata.csv").read_text().splitlines()
    lines = [f"{line},{words[i % 2] if i else 'split'}" for i, line in enumerate(lines)]
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(lines) + "\n")
    study = load_study(str(write_study(tmp_path)))
    report = prepare(study, tmp_path / "data")
    assert (report.train, report.heldout) == (16 - held, held)
    if held == 8:
        heldout = [r.id for r in load_table(tmp_path / "data").records if r.split == "heldout"]
        assert set(heldout) == {line.split(",")[0] for line in lines[1:] if line.endswith("heldout")}


def test_a_file_that_metadata_names_and_is_missing_is_reported(tmp_path):
    write_images(tmp_path / "images", 4)
    with (tmp_path / "images" / "metadata.csv").open("a") as file:
        file.write("round/99.png,round,gone,nobody,CC0\n")
    report = prepare(load_study(str(write_study(tmp_path))), tmp_path / "data")
    assert report.refused == [{"id": "round/99.png", "reason": "the file is missing or empty"}]


def test_metadata_reaches_the_table(tiny):
    record = tiny.table.records[0]
    assert record.caption.startswith("picture")
    assert record.creator.startswith("artist")
    assert record.licence == "CC0"
    assert [r.split for r in tiny.table.records] == ["train"] * 14 + ["heldout"] * 2
    assert open_image(tiny.table.original(record.id)).size == (16, 16)


def test_split_depends_on_seed_and_ids_alone(tiny):
    ids = [record.id for record in tiny.table.records]
    assert split_of(tiny.study, ids) == split_of(tiny.study, ids[::-1])


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DtrakError):
        prepare(load_study(str(write_study(tmp_path))), tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resolution": -1}, "resolution"),
        ({"features": [{"output": "nonsense"}]}, "features"),
        ({"data": {"kind": "imagefolder"}}, "path"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_configuration_names_the_key(tmp_path, change, named):
    with pytest.raises(DtrakError, match=named):
        load_study(str(write_study(tmp_path, **change)))


def test_a_changed_folder_is_noticed(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    shutil.copytree(source / "images", tmp_path / "images")
    folder = StudyFolder(load_study(str(write_study(tmp_path))))
    prepare_data(folder)
    caplog.clear()  # another test may have set the level at which it reports
    assert prepare_data(folder) is None
    assert not caplog.records
    shutil.copy(tmp_path / "images" / "round" / "01.png", tmp_path / "images" / "round" / "new.png")
    assert prepare_data(folder) is None
    assert "it had 17 files and now has 18" in caplog.text
    assert "prepare tiny --force" in caplog.text


def test_damaged_data_are_refused_when_opened(fresh):
    for name in ("pixels.npy", "records.parquet"):
        path = fresh.data / name
        content = path.read_bytes()
        path.write_bytes(content[:100])
        with pytest.raises(DtrakError, match="--repair"):
            load_table(fresh.data)
        path.write_bytes(content)
    assert verify_data(fresh.data) == []
    np.save(fresh.data / "pixels.npy", np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(DtrakError, match="16 records, 3 images"):
        load_table(fresh.data)


@pytest.mark.parametrize(
    ("template", "captions"),
    [("a photo of sks dog", ["a photo of sks dog"] * 2), ("{label}", ["a photo of a dog", "a photo of sks dog"])],
)
def test_one_prompt_for_all_images_or_one_for_each_folder(tmp_path, template, captions):
    for number, name in enumerate(("a photo of a dog/1.png", "a photo of sks dog/2.png")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_image(number).save(tmp_path / "images" / name)
    data = {"kind": "imagefolder", "path": "images", "holdout": 0, "caption_template": template}
    assert prepare(load_study(str(write_study(tmp_path, data=data))), tmp_path / "data").train == 2
    assert sorted(r.caption for r in load_table(tmp_path / "data", True).records) == sorted(captions)
