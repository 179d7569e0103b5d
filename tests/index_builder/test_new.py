"""``dtrak new``: from a base, a LoRA and a folder of images to a study that builds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.data.captions import caption_beside, captioned_images
from dtrak.models.lora_file import read_lora_file
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from index_builder.cli import app
from tests.pipelines import SIDE, write_pipeline


@pytest.fixture
def own(tmp_path):
    """A FLUX.1 base, a LoRA of Kohya's scripts, and images with text files beside them."""
    write_pipeline("flux", tmp_path / "base")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
        if i:
            (images / f"{i}.txt").write_text(f"drawing {i},\nround\n")
    state = {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.zeros(4, 16),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.zeros(32, 4),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 16),
    }
    told = {
        "ss_base_model_version": "flux1", "ss_resolution": "(512, 512)",
        "ss_tag_frequency": json.dumps({"5_mine": {"round": 5, "drawing 1": 1}}),
    }  # fmt: skip
    save_file(state, tmp_path / "mine.safetensors", told)
    return tmp_path


def arguments(own, **changes):
    given = {"--base": own / "base", "--lora": own / "mine.safetensors", "--images": own / "images"} | changes
    return ["new", str(own / "mine.yaml"), *(str(part) for pair in given.items() for part in pair)]


def test_a_study_is_written_and_reads_its_captions(own, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(own / "workspace"))
    result = CliRunner().invoke(app, arguments(own, **{"--resolution": SIDE}))
    assert result.exit_code == 0, result.output
    study = load_study(str(own / "mine.yaml"))
    assert study.model.dtype == "bfloat16"
    assert study.model.gradient_checkpointing
    assert study.resolution == SIDE
    folder = StudyFolder(study)
    prepare(study, folder.data)
    assert sorted(r.caption for r in folder.table.records) == ["", *(f"drawing {i}, round" for i in range(1, 6))]
    assert isinstance(CliRunner().invoke(app, arguments(own)).exception, DtrakError)  # exists


def test_what_a_lora_file_says(own):
    found = read_lora_file(own / "mine.safetensors")
    assert found.ranks == {4: 2}
    assert (found.family, found.resolution, found.base) == ("FluxPipeline", 512, "flux1")
    assert found.words == ("round", "drawing 1")
    assert found.text_encoder
    save_file({"a": torch.zeros(1)}, own / "none.safetensors")
    with pytest.raises(DtrakError, match="holds no LoRA"):
        read_lora_file(own / "none.safetensors")
    (own / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(DtrakError, match="cannot be read"):
        read_lora_file(own / "junk.safetensors")


def test_a_lora_of_flux_2_is_for_dev_or_klein(own):
    write_pipeline("flux2-klein", own / "klein")
    names = ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", "transformer_blocks.0.attn.to_q")
    state = {f"transformer.{name}.lora_{side}.weight": torch.zeros(4, 4) for name in names for side in "AB"}
    save_file(state, own / "flux2.safetensors")
    assert read_lora_file(own / "flux2.safetensors").family == "Flux2Pipeline"
    given = {"--base": own / "klein", "--lora": own / "flux2.safetensors", "--resolution": SIDE}
    assert CliRunner().invoke(app, arguments(own, **given)).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"--images": "nowhere"}, "no images"), ({"--base": "sdxl"}, "seems to be made for a FluxPipeline")],
)
def test_what_does_not_fit_is_refused(own, changes, message):
    if "--base" in changes:
        write_pipeline("sdxl", own / "sdxl")
        changes = {"--base": own / "sdxl"}
    result = CliRunner().invoke(app, arguments(own, **changes))
    assert message in result.exception.message
    assert not (own / "mine.yaml").exists()


def test_captions_are_counted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,hello\n")
    assert captioned_images(tmp_path) == (2, 1)
    assert caption_beside(tmp_path / "b.png") == caption_beside(None) == ""


def test_the_kind_of_a_model_is_found(own):
    (own / "auto.yaml").write_text(
        "data: {kind: imagefolder, path: images}\nresolution: 16\nmodel: {kind: auto, path: base}\n"
    )
    assert load_study(str(own / "auto.yaml")).model.kind == "text-to-image"
    (own / "auto.yaml").write_text(
        "data: {kind: imagefolder, path: images}\nresolution: 16\nmodel: {kind: auto, path: elsewhere}\n"
    )
    assert load_study(str(own / "auto.yaml")).model.kind == "pixel"
