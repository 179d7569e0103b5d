"""CIFAR-10, CelebA and ArtBench are read from their distributed archives, and bad archives are rejected."""

import csv
import hashlib
import io
import pickle
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from dtrak.config import DataConfig, load_study
from dtrak.data.files import Files
from dtrak.data.images import to_model_pixels
from dtrak.data.releases import CIFAR_LABELS, PlainUnpickler, release_rows
from dtrak.data.rows import Rows, drawn
from dtrak.data.sources import read_source
from dtrak.data.table import model_pixels
from dtrak.utils.errors import DtrakError


def cifar_pixels(number):
    return np.random.default_rng(number).integers(0, 256, (3, 32, 32), np.uint8)


def tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar_archive(path, kind):
    """Two images a batch; image i of batch b has label 2b + i − 2 and the pixels of that number."""
    members = {}
    for batch in range(1, 7):
        numbers = [2 * batch - 2, 2 * batch - 1]
        labels = [n % 10 for n in numbers]
        name = "test_batch" if batch == 6 else f"data_batch_{batch}"
        if kind == "binary":
            content = b"".join(
                bytes([label]) + cifar_pixels(n).tobytes() for label, n in zip(labels, numbers, strict=True)
            )
            members[f"cifar-10-batches-bin/{name}.bin"] = content
        else:
            data = np.stack([cifar_pixels(n).ravel() for n in numbers])
            members[f"cifar-10-batches-py/{name}"] = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
    return tar(path, members)


CIFAR = DataConfig(kind="cifar10", path="cifar.tar.gz")


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar10_is_read_from_either_archive_in_the_papers_order(tmp_path, kind):
    rows = release_rows(CIFAR, cifar_archive(tmp_path / "cifar.tar.gz", kind), "train")
    numbers = [6, 7, 4, 5, 2, 3, 8, 9, 0, 1]  # batches 4, 3, 2, 5, 1
    assert list(rows.labels) == [CIFAR_LABELS[n] for n in numbers]
    item = rows.read(2)
    assert item.id == "train/00002"
    assert item.label == CIFAR_LABELS[4]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(item.image))), cifar_pixels(4).transpose(1, 2, 0))
    assert list(release_rows(CIFAR, tmp_path / "cifar.tar.gz", "test").labels) == ["airplane", "automobile"]


def test_a_study_of_an_archive_is_drawn_in_order(tmp_path, monkeypatch):
    cifar_archive(tmp_path / "cifar.tar.gz", "binary")
    study = load_study("cifar2").model_copy(
        update={
            "source": tmp_path / "a.yaml",
            "data": DataConfig(
                kind="cifar10", path="cifar.tar.gz", include=("ship", "truck", "cat"), heldout_split="test",
                train_size=2, split_seed=42, stratify=False, caption_template="a {label}",
            ),
        }
    )  # fmt: skip
    with pytest.raises(DtrakError, match="no label"):
        list(read_source(study))  # the test batch has none of them
    study = study.model_copy(update={"data": study.data.model_copy(update={"include": ()})})
    items = list(read_source(study))
    assert [i.id for i in items[:2]] == [f"train/{i:05d}" for i in drawn([None] * 10, 2, 42, False)]
    assert [i.split for i in items] == ["train"] * 2 + ["heldout"] * 2
    assert items[2].caption == "a airplane"


def test_the_hubs_copy_is_the_same_road(tmp_path, monkeypatch):
    """Rows as the hub's copy has them, image and class label by their names there, give the archive's items."""
    path = cifar_archive(tmp_path / "cifar.tar.gz", "binary")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CIFAR_LABELS))})
    asked = []

    def load(name, config_name, split):
        asked.append((name, split))
        rows = release_rows(CIFAR, path, split)
        items = [rows.read(i) for i in range(len(rows.labels))]
        images = [{"bytes": item.image, "path": None} for item in items]
        labels = [CIFAR_LABELS.index(item.label) for item in items]
        return datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    study = load_study("cifar2")
    data = study.data.model_copy(
        update={"include": (), "train_size": 4, "heldout_size": 1, "stratify": False, "md5": ()}
    )
    hub = study.model_copy(update={"source": tmp_path / "configs" / "a.yaml", "data": data})
    disk = hub.model_copy(update={"data": data.model_copy(update={"path": str(path)})})
    found = list(read_source(hub))
    assert asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]
    assert [(i.id, i.label, i.image, i.split) for i in found] == [
        (i.id, i.label, i.image, i.split) for i in read_source(disk)
    ]


def test_refused_archives_say_why(tmp_path):
    good = cifar_archive(tmp_path / "good.tar.gz", "binary")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(good.read_bytes()[:3000])
    with pytest.raises(DtrakError, match="damaged"):
        release_rows(CIFAR, cut, "train")
    with pytest.raises(DtrakError, match="MD5"):
        release_rows(CIFAR.model_copy(update={"md5": ("0" * 32,)}), good, "train")
    known = hashlib.md5(good.read_bytes()).hexdigest()
    assert release_rows(CIFAR.model_copy(update={"md5": (known,)}), good, "train").labels
    with pytest.raises(DtrakError, match="does not exist"):
        release_rows(CIFAR, tmp_path / "none.tar.gz", "train")
    with pytest.raises(DtrakError, match="no file 'data_batch_4'"):
        release_rows(CIFAR, tar(tmp_path / "empty.tar.gz", {"a": b""}), "train")
    with pytest.raises(DtrakError, match="points outside"):
        Files(tar(tmp_path / "climbing.tar.gz", {"../../etc/data_batch_4.bin": b"x"}))
    with pytest.raises(DtrakError, match="malformed"):
        release_rows(CIFAR, tar(tmp_path / "odd.tar.gz", {"data_batch_4.bin": b"\0" * 100}), "train")
    with pytest.raises(DtrakError, match="no split"):
        release_rows(CIFAR, good, "validation")
    assert Rows(["a", "b", "c"], lambda i: None).chosen((), None, 0, False, exclude=("b",)) == [0, 2]
    with pytest.raises(DtrakError, match="Cannot draw"):
        Rows(["a", "b"], lambda i: None).chosen((), 3, 0, False)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    content = pickle.dumps({b"data": Evil(), b"labels": [0]})
    with pytest.raises(pickle.UnpicklingError, match="open"):
        PlainUnpickler(io.BytesIO(content)).load()
    archive = tar(tmp_path / "evil.tar.gz", {"data_batch_4": content})
    with pytest.raises(DtrakError, match="malformed"):
        release_rows(CIFAR, archive, "train")
    assert not (tmp_path / "made").exists()


def png(number, size):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def celeba_folder(folder, zipped):
    folder.mkdir()
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    parts = dict(zip(names, "000112", strict=True))
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in parts.items()))
    attributes = "".join(f"{n}  1 -1\n" for n in names)
    (folder / "list_attr_celeba.txt").write_text(f"6\nSmiling Wavy_Hair\n{attributes}")
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for i, name in enumerate(names):
                archive.writestr(f"img_align_celeba/{name}", png(i, (178, 218)))
    else:
        (folder / "img_align_celeba").mkdir()
        for i, name in enumerate(names):
            (folder / "img_align_celeba" / name).write_bytes(png(i, (178, 218)))
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_is_read_from_its_files(tmp_path, zipped):
    folder = celeba_folder(tmp_path / "celeba", zipped)
    data = DataConfig(kind="celeba", path="celeba")
    assert [len(release_rows(data, folder, split).labels) for split in ("train", "valid", "test")] == [3, 2, 1]
    item = release_rows(data, folder, "valid").read(1)
    assert item.id == "000005.jpg"
    assert item.caption == "Smiling"
    assert item.image == png(4, (178, 218))
    (folder / "list_attr_celeba.txt").unlink()
    with pytest.raises(DtrakError, match="list_attr_celeba"):
        release_rows(data, folder, "train")


def test_celebas_crop_is_for_real_images_alone():
    study = load_study("celeba")
    photo = Image.open(io.BytesIO(png(0, (178, 218))))
    expected = photo.crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(model_pixels(study, photo), np.asarray(expected))
    drawn_by_the_model = Image.open(io.BytesIO(png(1, (64, 64))))
    np.testing.assert_array_equal(model_pixels(study, drawn_by_the_model), np.asarray(drawn_by_the_model))


def test_scaling_then_cropping_keeps_the_middle():
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))
    assert (to_model_pixels(wide, 10, resample="bilinear")[:, 1:-1] == (0, 0, 255)).all()


def artbench(path, archived):
    rows, members = [], {}
    for i, style in enumerate(["baroque", "ukiyo_e", "post_impressionism", "ukiyo_e"]):
        split = "test" if i == 3 else "train"
        name = f"hokusai_{i}.jpg"
        rows.append({"name": name, "artist": "katsushika-hokusai", "label": style, "split": split})
        members[f"artbench-10-imagefolder-split/{split}/{style}/{name}"] = png(i, (256, 256))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    path.mkdir()
    (path / "ArtBench-10.csv").write_text(text.getvalue())
    if archived:
        return tar(path / "artbench.tar", members)
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("archived", [True, False])
def test_artbench_is_read_from_its_release(tmp_path, archived):
    path = artbench(tmp_path / "artbench", archived)
    rows = release_rows(DataConfig(kind="artbench", path="a"), path, "train")
    assert rows.chosen(("ukiyo_e", "post_impressionism"), None, 42, True) == [1, 2]
    item = rows.read(1)
    assert (item.id, item.label, item.creator) == ("00001", "ukiyo_e", "Katsushika Hokusai")
    assert item.image == png(1, (256, 256))
    study = load_study("artbench2").model_copy(update={"source": tmp_path / "a.yaml"})
    data = study.data.model_copy(
        update={"path": str(path), "train_size": None, "heldout_size": None, "include": ("ukiyo_e",)}
    )
    assert [i.caption for i in read_source(study.model_copy(update={"data": data}))] == ["a ukiyo e painting"] * 2
