"""LoRAs of Stable Diffusion: their formats, a user's own, that of a base study, and which model each makes."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from dtrak.build.features import build_features, build_indexes
from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.models.families.stable_diffusion import load_stable_diffusion
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder, model_digest, recipe_digest
from dtrak.training.study import initial_model, train_study
from dtrak.utils.errors import DtrakError
from tests.stable_diffusion import SIDE, write_lora_study


def test_loras_of_peft_and_of_diffusers_load_to_the_same_model(paintings, painted, tmp_path):
    adapter = painted.model_dir / "checkpoint-1.00"
    ours = load_stable_diffusion(paintings / "base", SIDE, adapter, torch.float32)
    state = get_peft_model_state_dict(ours.network)
    named = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path / "new", unet_lora_layers=named)
    old = {  # as attention processors were saved before peft
        "unet." + n.replace(".lora_A.weight", "_lora.down.weight").replace(".lora_B.weight", "_lora.up.weight")
        .replace(".to_q_", ".processor.to_q_").replace(".to_k_", ".processor.to_k_")
        .replace(".to_v_", ".processor.to_v_").replace(".to_out.0_", ".processor.to_out_"): v.contiguous()
        for n, v in named.items()
    }  # fmt: skip
    save_file(old, tmp_path / "old.safetensors")
    x_t, t, told = torch.randn(1, *ours.latent_shape), torch.tensor([500]), ours.condition(["a round painting"])
    for source in (
        tmp_path / "new",
        tmp_path / "new" / "pytorch_lora_weights.safetensors",
        tmp_path / "old.safetensors",
    ):
        theirs = load_stable_diffusion(paintings / "base", SIDE, source, torch.float32)
        assert [p.shape for p in theirs.parameters().values()] == [p.shape for p in ours.parameters().values()]
        with torch.no_grad():
            torch.testing.assert_close(theirs.predict(x_t, t, told), ours.predict(x_t, t, told))


@pytest.mark.parametrize("saved", ["peft", "diffusers"])
def test_a_lora_on_the_model_of_a_study_starts_from_that_models_lora(paintings, painted, tmp_path, monkeypatch, saved):
    adapter = painted.model_dir / "checkpoint-1.00"
    first = load_stable_diffusion(paintings / "base", SIDE, adapter, torch.float32)
    if saved == "diffusers":
        state = get_peft_model_state_dict(first.network)
        layers = {name.removeprefix("base_model.model."): value for name, value in state.items()}
        StableDiffusionPipeline.save_lora_weights(tmp_path / "new", unet_lora_layers=layers)
        adapter = tmp_path / "new"
    for part in ("base", "paintings"):
        shutil.copytree(paintings / part, tmp_path / part)
    write_lora_study(tmp_path, adapter=str(adapter)).rename(tmp_path / "first.yaml")
    again = write_lora_study(tmp_path, path=None, base=str(tmp_path / "first.yaml"))
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    second = StudyFolder(load_study(str(again)))
    prepare(second.study, second.data)
    start = initial_model(second)
    x_t, t, told = torch.randn(1, *first.latent_shape), torch.tensor([500]), first.condition(["a round painting"])
    with torch.no_grad():
        torch.testing.assert_close(start.predict(x_t, t, told), first.predict(x_t, t, told))
    assert all("lora_" in name for name in start.parameters())
    recipe = recipe_digest(second)
    train_study(second)
    own = second.model_dir / "checkpoint-1.00"
    apart = load_stable_diffusion(paintings / "base", SIDE, own, torch.float32)
    whole = load_stable_diffusion(paintings / "base", SIDE, own, torch.float32, merged=[adapter])
    with torch.no_grad():
        trained = load_study_model(second).predict(x_t, t, told)
        torch.testing.assert_close(trained, whole.predict(x_t, t, told))
        assert not torch.allclose(trained, apart.predict(x_t, t, told))
    before = model_digest(second)
    write_lora_study(tmp_path).rename(tmp_path / "first.yaml")  # the base without its LoRA
    write_lora_study(tmp_path, path=None, base=str(tmp_path / "first.yaml"))
    assert recipe_digest(StudyFolder(load_study(str(again)))) != recipe
    assert model_digest(StudyFolder(load_study(str(again)))) != before


def test_a_users_lora_makes_a_study_without_training(paintings, painted, tmp_path, monkeypatch):
    shutil.copytree(painted.model_dir / "checkpoint-1.00", tmp_path / "mine")
    shutil.copytree(paintings / "base", tmp_path / "base")
    shutil.copytree(paintings / "paintings", tmp_path / "paintings")
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    study = StudyFolder(load_study(str(write_lora_study(tmp_path, adapter="mine"))))
    prepare(study.study, study.data)
    build_indexes(study, build_features(study, Local(1)))
    attributor = Attributor(study)
    query = Query(np.asarray(study.table.pixels[-1]), "a round painting")
    answer = attributor.attribute(query, attributor.features(query), "dtrak", top=3)
    assert len(answer.proponents) <= 3
    assert np.isfinite(answer.scores).all()


def test_a_study_without_a_lora_is_refused(paintings, tmp_path, monkeypatch):
    shutil.copytree(paintings / "base", tmp_path / "base")
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    path = write_lora_study(tmp_path)
    path.write_text(path.read_text().replace("method: lora", "method: full"))
    with pytest.raises(DtrakError, match="no LoRA to attribute over"):
        load_study_model(StudyFolder(load_study(str(path))))


def test_another_lora_file_is_another_model(paintings, tmp_path, monkeypatch):
    shutil.copytree(paintings / "base", tmp_path / "base")
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    digests = []
    for seed in (0, 1):
        save_file({"a": torch.full((2,), float(seed))}, tmp_path / "mine.safetensors")
        digests.append(
            model_digest(StudyFolder(load_study(str(write_lora_study(tmp_path, adapter="mine.safetensors")))))
        )
    assert digests[0] != digests[1]
    half = write_lora_study(tmp_path, adapter="mine.safetensors", dtype="bfloat16")
    whole = StudyFolder(load_study(str(half)))
    exact = StudyFolder(
        whole.study.model_copy(update={"model": whole.study.model.model_copy(update={"dtype": "float32"})})
    )
    assert recipe_digest(whole) != recipe_digest(exact)
