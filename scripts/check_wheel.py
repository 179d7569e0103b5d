"""A study of a few drawings and a small random model in the current folder, for check_wheel.sh."""

from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

import dtrak
from dtrak.config import ROOT, study_names

assert "site-packages" in str(ROOT), ROOT
assert "demo" in study_names()
assert (ROOT / "app.py").is_file()
assert dtrak.methods().loc["dtrak", "title"] == "D-TRAK"
random = np.random.default_rng(0)
Path("images").mkdir()
for i in range(10):
    pixels = np.tile(random.integers(0, 256, 3, np.uint8), (16, 16, 1))
    pixels[:8, i:] = random.integers(0, 256, 3)
    Image.fromarray(pixels).save(f"images/{i}.png")
torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
DDPMPipeline(unet, DDPMScheduler()).save_pretrained("model")
study = {
    "data": {"kind": "imagefolder", "path": "images"},
    "resolution": 16,
    "model": {"path": "model"},
    "features": [
        {"output": output, "timesteps": 2, "projection_dim": 16} for output in ("mean-squared-l2-norm", "loss")
    ],
}
Path("shapes.yaml").write_text(yaml.safe_dump(study))
