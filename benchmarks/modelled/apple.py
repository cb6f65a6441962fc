"""Modelled times of a 7B model on Apple chips, from published speeds.

llama.cpp's published speeds give the share of a chip's peak and bandwidth (`CHIPS`) that is reached
in practice. With these shares, counts of work are converted to seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgl_mlx.benchmarks.modelled.kernel_model import CHIPS, Chip
from sgl_mlx.benchmarks.modelled.token_counts import IMAGE_TOKENS, Work
from sgl_mlx.errors import BenchmarkError

KV_SHARE = 0.8
"""Assumed share of the memory bandwidth that attention reaches in reading keys and values."""

ENCODE_SHARE = 0.5
"""Assumed share of the peak TFLOPS that a vision tower reaches."""


@dataclass(frozen=True)
class Tower:
    """Shape of a vision transformer and its projector of two layers.

    Attributes:
        inner: width inside the feed-forward layers.
        patches: number of patches of a picture.
    """

    layers: int
    hidden: int
    inner: int
    patches: int

    def flops(self, width: int) -> float:
        """Return the FLOPs for one picture, with the projection to the language model's `width`."""
        tokens = self.patches + 1  # the class token
        matrices = 2 * tokens * (4 * self.hidden**2 + 2 * self.hidden * self.inner)
        attention = 4 * tokens**2 * self.hidden
        projector = 2 * self.patches * (self.hidden * width + width**2)
        return self.layers * (matrices + attention) + projector


@dataclass(frozen=True)
class Model:
    """Shape of a language model without grouped KV heads, and of its vision tower, if any."""

    name: str
    parameters: float
    layers: int
    hidden: int
    tower: Tower | None = None

    @property
    def flops(self) -> float:
        """FLOPs for one token, without attention."""
        return 2 * self.parameters

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values at float16."""
        return 2 * self.layers * self.hidden * 2


MODELS = {
    model.name: model
    for model in (
        Model("llama-2-7b", 6.74e9, 32, 4096),
        # a tuned llama-2-7b, with CLIP ViT-L/14 at 336 pixels without its last layer
        Model("llava-1.5-7b", 6.74e9, 32, 4096, Tower(23, 1024, 4096, IMAGE_TOKENS)),
    )
}

QUANTS = {"f16": 16.0, "q4_0": 4.5}
"""Bits per weight; Q4_0 has 4 bits and a scale of 16 bits for 32 weights."""


@dataclass(frozen=True)
class Published:
    """Tokens per second of llama-2-7b: prefill of 512 tokens (pp512), and decoding (tg128)."""

    prefill: float
    decode: float


SOURCE = "ggml-org/llama.cpp discussion 4167 (pp512 and tg128 of llama-2-7b), from a second copy"

PUBLISHED = {
    ("m1", "q4_0"): Published(118, 14.2),
    ("m1-max", "f16"): Published(600, 23.0),
    ("m1-max", "q4_0"): Published(530, 61),
    ("m2-ultra", "f16"): Published(1401.85, 41.02),
    ("m2-ultra", "q4_0"): Published(1238.48, 94.27),
    ("m3-max", "f16"): Published(779, 25.1),
    ("m3-max", "q4_0"): Published(760, 66),
    ("m4-max", "f16"): Published(923, 31.6),
    ("m4-max", "q4_0"): Published(886, 83),
}
"""Speeds by chip and quantization, from `SOURCE`.

For MLX only one decoding speed is published, near to llama.cpp's: 106 tokens per second for a 7B
model in 4 bits on M2 Ultra (mlx issue 979). M5 Pro is left out (1589 and 21.6 tokens per second at
F16), because the peak of its matrix units is not known."""


@dataclass(frozen=True)
class Machine:
    """A chip that runs a model.

    Args:
        quant: type of the weights, a key of `QUANTS`.
        prefill_share: share of the chip's peak TFLOPS that prefill reaches.
        decode_share: share of the chip's bandwidth at which decoding reads the weights.
    """

    chip: Chip
    model: Model
    quant: str
    prefill_share: float
    decode_share: float

    @classmethod
    def find(cls, chip: str, model: str, quant: str) -> Machine:
        """Return a machine whose shares reproduce the published speeds.

        Raises:
            BenchmarkError: when chip, model or quantization is unknown, or no speed is published.
        """
        asked = (("chip", chip, CHIPS), ("model", model, MODELS), ("quantization", quant, QUANTS))
        for what, name, known in asked:
            if name not in known:
                raise BenchmarkError(f"no {what} {name!r} is known; there are {', '.join(known)}")
        speeds = PUBLISHED.get((chip, quant))
        if speeds is None:
            others = ", ".join(other for one, other in PUBLISHED if one == chip)
            raise BenchmarkError(f"no speed is published for {quant} on {chip}; there is {others}")
        running, shape = CHIPS[chip], MODELS[model]
        full = cls(running, shape, quant, prefill_share=1.0, decode_share=1.0)
        return replace(
            full,
            prefill_share=speeds.prefill / full.prefill_speed,
            decode_share=speeds.decode * full.weights_seconds,
        )

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return QUANTS[self.quant]

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens per second."""
        return self.prefill_share * self.chip.tflops * 1e12 / self.model.flops

    @property
    def weights_seconds(self) -> float:
        """Seconds to read all weights once."""
        read = self.model.parameters * self.bits / 8
        return read / (self.decode_share * self.chip.bandwidth * 1e9)

    def seconds(self, work: Work) -> float:
        """Return the modelled seconds of `work`: prefill, decoding in full batches, pictures."""
        keys = work.batch * work.context * self.model.kv_bytes
        read = self.weights_seconds + keys / (KV_SHARE * self.chip.bandwidth * 1e9)
        step = max(read, work.batch / self.prefill_speed)
        prefill = work.prefilled / self.prefill_speed
        return prefill + work.decoded / work.batch * step + work.encoded * self.encode_seconds

    @property
    def encode_seconds(self) -> float:
        """Modelled seconds to encode one picture; 0 without a vision tower."""
        tower = self.model.tower
        if tower is None:
            return 0.0
        return tower.flops(self.model.hidden) / (ENCODE_SHARE * self.chip.tflops * 1e12)
