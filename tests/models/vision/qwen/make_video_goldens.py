"""Writes `../goldens/qwen_videos.npz`: what transformers computes with videos in toy Qwen models.

Needs the environment of `tests.models.vision.make_goldens` and torchvision 0.28.0. In the
repository's root: `python -m tests.models.vision.qwen.make_video_goldens`. The models are those of
`make_goldens.py`, whose files have their weights.

For each model and film the file has `<model>/<film>/<what>`: `pixels`, `grid` (times, rows and
columns of patches), `packed`, `tokens`, `positions`, `logits` and `continued`, as in
`make_goldens.py`. Pillow resizes the frames before the video processor sees them, because torch's
resizing differs a little. `sizes/<kind>` has rows of frames, height, width, least and most pixels,
and the height and width after resizing.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from tests.models.vision.make_goldens import FOLDER, set_weights  # pins the CPU's code

# isort: split
from PIL import Image
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from tests.models.vision.qwen.films import FILMS, SETTINGS, Film, spelled
from tests.models.vision.qwen.make_goldens import AFTER, BEFORE, END, MARKS, MODELS, START, VIDEO

NEW = 6
RATE = 4
"""Positions in a second of video, in the Qwen2.5-VL of `make_goldens.py`."""


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arrays: dict[str, np.ndarray] = {}
    for name in MODELS:
        model = built(name)
        for case, shown in FILMS.items():
            found = run(model, name, shown)
            arrays |= {f"{name}/{case}/{key}": value for key, value in found.items()}
    processors = {"qwen2": Qwen2VLVideoProcessor, "qwen3": Qwen3VLVideoProcessor}
    for kind, processor in processors.items():
        for capped in (False, True):
            arrays[f"sizes/{kind}{'_capped' if capped else ''}"] = sizes(processor, capped)
    np.savez_compressed(FOLDER / "qwen_videos.npz", **arrays)


def built(name: str) -> Any:
    model_class, config_class, given = MODELS[name]
    model = model_class(config_class(**deepcopy(given), **MARKS)).eval()
    set_weights(model)
    model.lm_head.weight[START:] = 0  # so that no mark is ever the likeliest token
    with np.load(FOLDER / f"{name}.npz") as file:
        for key, value in model.state_dict().items():
            assert np.array_equal(file[f"weights/{key}"], value.numpy()), key
    return model


def run(model: Any, name: str, shown: Film) -> dict[str, np.ndarray]:
    frames, stamped = shown.frames(), not name.startswith("qwen2")
    chosen = [frames[i] for i in shown.indices()]
    processor = (Qwen3VLVideoProcessor if stamped else Qwen2VLVideoProcessor)(**SETTINGS)
    inputs = processed(processor, chosen)
    rate = 1000 / shown.milliseconds
    (times, rows, columns), tokens = inputs["video_grid_thw"][0].tolist(), [*BEFORE]
    held = [VIDEO] * (rows * columns // 4)
    if stamped:
        middles = Qwen3VLProcessor._calculate_timestamps(None, shown.indices(), rate, 2)
        for middle in middles:
            tokens += [*spelled(f"<{middle:.1f} seconds>"), START, *held, END]
    else:
        tokens += [START, *held * times, END]
    tokens += AFTER
    timing = {}
    if name == "qwen2_5_vl":
        timing["second_per_grid_ts"] = torch.tensor([2 / (shown.count / shown.total * rate)])
    seen = model.model.get_video_features(**inputs, return_dict=True)
    deep = [torch.cat(list(x)) for x in getattr(seen, "deepstack_features", None) or ()]

    def logits(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([tokens])
        types = 2 * (ids == VIDEO).int()
        grid = inputs["video_grid_thw"]
        positions, _ = model.model.get_rope_index(ids, types, video_grid_thw=grid, **timing)
        positions = after_videos(ids[0], positions)
        found = model(ids, mm_token_type_ids=types, position_ids=positions, **inputs, **timing)
        return found.logits[0], positions

    first, positions = logits(tokens)
    continued = [int(first[-1].argmax())]
    while len(continued) < NEW:
        continued.append(int(logits(tokens + continued)[0][-1].argmax()))
    return {
        "pixels": inputs["pixel_values_videos"].numpy(),
        "grid": np.array([times, rows, columns]),
        "packed": torch.cat([torch.cat(list(seen.pooler_output)), *deep], dim=-1).numpy(),
        "tokens": np.array(tokens, np.int32),
        "positions": positions[:, 0].numpy().astype(np.int32),
        "logits": first.numpy(),
        "continued": np.array(continued, np.int32),
    }


def after_videos(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Move text after a video behind its last time.

    Transformers 5.24 begins it after the video's rows and columns alone. By the paper (arXiv
    2409.12191) and in older releases it begins after the largest of all the video's positions.
    """
    shown = (ids == VIDEO).nonzero()[:, 0]
    last = int(shown[-1])
    missing = int(positions[:, 0, shown].max()) + 1 - int(positions[0, 0, last + 1])
    moved = positions.clone()
    moved[:, :, last + 1 :] += max(missing, 0)
    return moved


def processed(processor: Any, frames: list[Image.Image]) -> dict[str, torch.Tensor]:
    def process(frames: list[Image.Image]) -> dict[str, torch.Tensor]:
        video = np.stack([np.asarray(frame) for frame in frames])
        found = processor([video], return_tensors="pt", do_sample_frames=False)
        return {key: found[key] for key in ("pixel_values_videos", "video_grid_thw")}

    rough = process(frames)
    _, rows, columns = rough["video_grid_thw"][0].tolist()
    size = columns * 4, rows * 4
    exact = process([frame.resize(size, Image.Resampling.BICUBIC) for frame in frames])
    assert torch.equal(exact["video_grid_thw"], rough["video_grid_thw"])
    # torch's resizing is nearly Pillow's
    assert (exact["pixel_values_videos"] - rough["pixel_values_videos"]).abs().max() < 0.1
    return exact


def sizes(kind: Any, capped: bool) -> np.ndarray:
    BaseVideoProcessor.resize = lambda self, image, size, resample: size
    draw, rows = np.random.default_rng(13), []
    bounds = [(100_352, 602_112), (131_072, 786_432), (4_096, 25_165_824), (3_136, 12_845_056)]
    for _ in range(200):
        least, most = bounds[draw.integers(len(bounds))]
        count = int(draw.integers(2, 400))
        height, width = draw.integers(8, 2200, 2).tolist()
        if max(height, width) > 100 * min(height, width):
            continue
        found = kind().resize(
            videos=torch.empty(1, count, 3, height, width, device="meta"),
            size=SizeDict(shortest_edge=least, longest_edge=most),
            resample=3,
            factor=32,
            temporal_factor=2,
            cap_pixels_per_frame=capped,
        )
        rows.append([count, height, width, least, most, found.height, found.width])
    return np.array(rows)


if __name__ == "__main__":
    main()
