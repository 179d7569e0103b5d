"""The unrelated images of the significance test are what their kind says, and depend on nothing else."""

import numpy as np
import pytest
from PIL import Image

from dtrak.config.study import UnrelatedConfig
from dtrak.data.unrelated import FILE, KINDS, kinds_of, unrelated_images
from dtrak.utils.errors import DtrakError


def with_config(tiny, **changes):
    return tiny.study.model_copy(update={"unrelated": UnrelatedConfig(drawings=20, count=20, **changes)})


def test_every_kind_is_what_it_says(tiny):
    study = with_config(tiny)
    found = unrelated_images(study, tiny.table)
    kinds = np.array(kinds_of(study))
    assert found.train_size == 0
    assert {name for name in found.names} <= set(tiny.table.names)
    assert [record.id.split(":")[1] for record in found.records] == kinds.tolist()
    assert all(np.ptp(image.reshape(-1, 3), 0).max() == 0 for image in found.pixels[kinds == "flat"])
    train = {tuple(sorted(map(tuple, image.reshape(-1, 3)))) for image in tiny.table.pixels[: tiny.table.train_size]}
    for image in found.pixels[kinds == "shuffled"]:
        assert tuple(sorted(map(tuple, image.reshape(-1, 3)))) in train
    assert abs(found.pixels[kinds == "noise"].mean() - 127.5) < 3
    assert len({image.tobytes() for image in found.pixels}) == 80
    again = unrelated_images(study, tiny.table)
    assert (again.pixels == found.pixels).all()
    assert set(kinds) == set(KINDS)


def test_more_images_leave_the_first_ones_alone(tiny):
    study = tiny.study.model_copy(update={"unrelated": UnrelatedConfig(drawings=24, count=20)})
    few, more = unrelated_images(with_config(tiny), tiny.table), unrelated_images(study, tiny.table)
    assert (more.pixels[:20] == few.pixels[:20]).all()
    assert (more.pixels[24:] == few.pixels[20:]).all()


def test_images_of_the_users_own_replace_the_drawings(tiny, tmp_path):
    for number in range(19):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    study = with_config(tiny, path=str(tmp_path))
    with pytest.raises(DtrakError, match="There are 19 images"):
        unrelated_images(study, tiny.table)
    Image.new("RGB", (9, 9), (200, 0, 0)).save(tmp_path / "99.png")
    assert unrelated_images(study, tiny.table).pixels[19].mean((0, 1)).round().tolist() == [200, 0, 0]


def test_the_shipped_drawings_suffice(tiny):
    assert FILE.exists()
    with pytest.raises(ValueError, match="ships 256"):
        UnrelatedConfig(drawings=257)
    study = tiny.study.model_copy(update={"unrelated": UnrelatedConfig(drawings=256)})
    assert kinds_of(study).count("drawing") == 256
    assert len(unrelated_images(study, tiny.table).pixels) == 256 + 3 * 64
