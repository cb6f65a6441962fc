"""Quantized layers whose weights the CPU kernels multiply without dequantizing them."""

# mypy: allow-subclassing-any
from __future__ import annotations

from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.mla import QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from mlx_lm.utils import dequantize_model

from sgl_mlx.cpu_kernels.packing import LANES, Packed, fits, pack, unpack


def packed_layer(module: nn.Module, kernels: ModuleType) -> nn.Module | None:
    """Make the layer on the CPU kernels that replaces a quantized `module`; None if none can."""
    kind = _KINDS.get(type(module))
    return kind(module, kernels) if kind is not None and _fits(module) else None


def dequantize_others(model: nn.Module) -> None:
    """Dequantize the layers that the CPU kernels cannot multiply, in place and lazily.

    Layers of a kind that mlx-lm does not dequantize stay as they are.
    """
    others: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if hasattr(module, "bits") and not _fits(module):
            holder = nn.Module()
            holder.layer = module
            others.append((name, dequantize_model(holder).layer))
    model.update_modules(tree_unflatten(others))


def _fits(module: nn.Module) -> bool:
    if type(module) not in _KINDS or module.mode != "affine":
        return False
    return fits(module.weight.shape[-1] * 32 // module.bits, module.bits, module.group_size)


class PackedLinear(nn.Module):
    """Quantized linear layer from `x (…, K)` to `(…, N)` in float32."""

    def __init__(self, layer: nn.QuantizedLinear, kernels: ModuleType) -> None:
        super().__init__()
        self.q, self.scales, self.biases, *self._how = _pack(layer)
        if "bias" in layer:
            self.bias = layer.bias
        self._kernels = kernels

    @property
    def weight(self) -> mx.array:
        """Dequantized weights `(N, K)`, which a few architectures read."""
        return unpack(self._packed)

    @property
    def _packed(self) -> Packed:
        return Packed(self.q, self.scales, self.biases, *self._how)

    def __call__(self, x: mx.array) -> mx.array:
        y = _multiply(self._kernels, x, self._packed)
        return y + self.bias if "bias" in self else y


class PackedEmbedding(nn.Module):
    """Quantized embedding; its weights are packed when it is first used as the output layer."""

    def __init__(self, layer: nn.QuantizedEmbedding, kernels: ModuleType) -> None:
        super().__init__()
        self.table = layer
        self._packed: Packed | None = None
        self._kernels = kernels

    @property
    def weight(self) -> mx.array:
        """Dequantized weights `(N, K)`, which a few architectures read."""
        table = self.table
        dequantized: mx.array = mx.dequantize(
            table.weight, table.scales, table.biases, table.group_size, table.bits
        )
        return dequantized

    def __call__(self, tokens: mx.array) -> mx.array:
        embedded: mx.array = self.table(tokens)
        return embedded

    def as_linear(self, x: mx.array) -> mx.array:
        if self._packed is None:
            self._packed = _pack(self.table)
        return _multiply(self._kernels, x, self._packed)


class _PackedMatrices(nn.Module):
    """Several matrices `(count, N, K)` in one packed array, one after the other."""

    def __init__(self, layer: nn.Module, kernels: ModuleType) -> None:
        super().__init__()
        self._count = layer.weight.shape[0]
        self.q, self.scales, self.biases, *self._how = _pack_matrices(layer)
        self._kernels = kernels

    def _multiply(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Multiply rows of `x (rows, K)` by the matrices `chosen (rows * repeats,)`.

        Row i of the result `(rows * repeats, N)` is row i // repeats of `x` times matrix
        `chosen[i]`.
        """
        packed = self.q, self.scales, self.biases, *self._how
        out: mx.array = self._kernels.linear_of_experts(
            x.astype(mx.float32), chosen.astype(mx.int32), *packed, self._count
        )
        return out


class PackedSwitchLinear(_PackedMatrices):
    """Linear layer of experts: mlx-lm's `QuantizedSwitchLinear` in float32."""

    def __init__(self, layer: QuantizedSwitchLinear, kernels: ModuleType) -> None:
        super().__init__(layer, kernels)
        if "bias" in layer:
            self.bias = layer.bias

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Multiply `x (…, M, K)` by the experts `indices (…)`; the result is `(…, M, N)`.

        The leading axes of `x` and `indices` are broadcast. The kernel sorts rows by expert itself,
        so `sorted_indices` makes no difference.
        """
        *leading, rows, k = x.shape
        batch = mx.broadcast_shapes(leading, indices.shape)
        # otherwise one row of x serves all experts of its token
        if (*leading, rows) != (*indices.shape[:-1], 1, 1):
            x = mx.broadcast_to(x, (*batch, rows, k))
        chosen = mx.broadcast_to(indices[..., None], (*batch, rows))
        y = self._multiply(x.reshape(-1, k), chosen.flatten()).reshape(*batch, rows, -1)
        return y + self.bias[indices][..., None, :] if "bias" in self else y


class PackedMultiLinear(_PackedMatrices):
    """Linear layer with a matrix for each head: mlx-lm's `QuantizedMultiLinear` in float32."""

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        """Multiply `x (…, heads, M, K)` by the transposed matrices, to `(…, heads, M, N)`.

        With `transpose=False`, `x (…, heads or 1, M, N)` is multiplied by dequantized matrices.
        """
        if not transpose:
            return x @ self._matrices()
        *leading, heads, rows, k = x.shape
        if heads != self._count:
            x = mx.broadcast_to(x, (*leading, self._count, rows, k))
        head = mx.broadcast_to(mx.arange(self._count)[:, None], x.shape[:-1])
        return self._multiply(x.reshape(-1, k), head.flatten()).reshape(*x.shape[:-1], -1)

    def _matrices(self) -> mx.array:
        """Return the dequantized matrices `(heads, N, K)`."""
        bits, group_size, n = self._how
        padded = n + -n % LANES
        rows = self._count * padded
        packed = Packed(self.q, self.scales, self.biases, bits, group_size, rows)
        return unpack(packed).reshape(self._count, padded, -1)[:, :n]


_KINDS: dict[type, type[nn.Module]] = {
    nn.QuantizedLinear: PackedLinear,
    nn.QuantizedEmbedding: PackedEmbedding,
    QuantizedSwitchLinear: PackedSwitchLinear,
    QuantizedMultiLinear: PackedMultiLinear,
}


def _pack(layer: nn.Module) -> Packed:
    return pack(layer.weight, layer.scales, layer.biases, layer.bits, layer.group_size)


def _pack_matrices(layer: nn.Module) -> Packed:
    """Pack `(count, N, K)`, with every matrix padded to a multiple of 16 outputs."""
    n: int = layer.weight.shape[1]
    weight, scales, biases = (
        mx.pad(x, [(0, 0), (0, -n % LANES), (0, 0)]).flatten(0, 1)
        for x in (layer.weight, layer.scales, layer.biases)
    )
    return pack(weight, scales, biases, layer.bits, layer.group_size)._replace(n=n)


def _multiply(kernels: ModuleType, x: mx.array, packed: Packed) -> mx.array:
    out: mx.array = kernels.linear(x.astype(mx.float32), *packed)
    return out
