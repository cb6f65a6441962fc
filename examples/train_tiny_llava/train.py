"""Trains a tiny LLaVA on scanned digits: a vision transformer and a projector, 1.2 M parameters.

As in LLaVA (arXiv 2310.03744) the tower is trained alone first, here to classify, and then aligned
with a language model that stays as it is: SmolLM2-135M, the default model. Writes `checkpoint/`,
which is Hugging Face's layout without language weights, and `held_out.npz`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from digits import CHECKPOINT, FOLDER
from language import Reader, fill, text_config
from safetensors.torch import save_file
from scans import Scans, jitter, normalise, split
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlavaConfig, LlavaModel, SiglipVisionConfig

from sgl_mlx.models.loader import load

SIDE, BATCH = 8, 32
TOWER = SiglipVisionConfig(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=SIDE,
    patch_size=2,
    vision_use_head=False,
)
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def classify(tower: nn.Module, train: Scans, epochs: int) -> None:
    """Train the tower to tell the digit from each single patch, so that each knows the whole."""
    head = nn.Sequential(nn.LayerNorm(TOWER.hidden_size), nn.Linear(TOWER.hidden_size, 10))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = AdamW(parameters, lr=1e-3, weight_decay=0.05)
    for pictures, digits in batches(train, epochs, optimizer):
        logits = head(tower(pictures, output_hidden_states=True).hidden_states[-1])
        loss = F.cross_entropy(logits.flatten(0, 1), digits.repeat_interleave(logits.shape[1]))
        loss.backward()


def align(model: LlavaModel, reader: Reader, train: Scans, epochs: int) -> None:
    """Train the projector, and the tower a little, to show the language model the digit."""
    groups = [
        {"params": model.multi_modal_projector.parameters(), "lr": 2e-3},
        {"params": model.vision_tower.parameters(), "lr": 2e-4},
    ]
    for pictures, digits in batches(train, epochs, AdamW(groups, weight_decay=0.01)):
        reader.loss(features(model, pictures), digits).backward()


def batches(train: Scans, epochs: int, optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and digits to compute gradients for; a step follows each."""
    pictures, digits = train.tensors()
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = len(train) // BATCH
    schedule = OneCycleLR(optimizer, peaks, total_steps=epochs * steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(train))[: steps * BATCH].split(BATCH):
            optimizer.zero_grad()
            yield normalise(jitter(pictures[chosen])), digits[chosen]
            optimizer.step()
            schedule.step()


def features(model: LlavaModel, pictures: Tensor) -> Tensor:
    """`(n, patches, text width)`, as transformers computes them."""
    states = model.vision_tower(pictures, output_hidden_states=True).hidden_states
    return model.multi_modal_projector(states[model.config.vision_feature_layer])


@torch.no_grad()
def accuracy(model: LlavaModel, reader: Reader, scans: Scans) -> float:
    """Share of scans that are read right."""
    pictures, digits = scans.tensors()
    parts = normalise(pictures).split(BATCH)
    read = torch.cat([reader.read(features(model, part)) for part in parts])
    return float((read == digits).float().mean())


def save(model: LlavaModel, held_out: Scans, folder: Path) -> None:
    """Write the checkpoint in half precision, without the language model's weights."""
    folder.mkdir(exist_ok=True)
    config = model.config.to_diff_dict() | {"architectures": ["LlavaForConditionalGeneration"]}
    for name, values in (("config", config), ("preprocessor_config", PROCESSOR)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    weights = {
        name: values.half().contiguous()
        for name, values in model.state_dict().items()
        if not name.startswith("language_model.")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    np.savez_compressed(FOLDER / "held_out.npz", scans=held_out.pictures, digits=held_out.digits)


def main(classify_epochs: int, align_epochs: int) -> None:
    torch.manual_seed(0)
    began = time.perf_counter()
    loaded = load("smollm2", dtype="float32")
    config = LlavaConfig(
        vision_config=TOWER,
        text_config=text_config(loaded),
        image_token_index=loaded.tokenizer.backend.token_to_id("<file_sep>"),  # never in a chat
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(TOWER.image_size // TOWER.patch_size) ** 2,
    )
    model = LlavaModel(config)
    fill(model.language_model, loaded)
    reader = Reader(model.language_model, loaded.tokenizer)
    train, held_out = split()
    classify(model.vision_tower, train, classify_epochs)
    print(f"tower trained after {time.perf_counter() - began:.0f} s", flush=True)
    align(model, reader, train, align_epochs)
    save(model, held_out, CHECKPOINT)
    right = accuracy(model, reader, held_out)
    print(f"{right:.1%} of {len(held_out)} held-out scans, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classify-epochs", type=int, default=150)
    parser.add_argument("--align-epochs", type=int, default=5)
    given = parser.parse_args()
    main(given.classify_epochs, given.align_epochs)
