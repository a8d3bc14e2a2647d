"""An encoder's matrix products for many predictions: each weight is packed once.

In: an encoder in evaluation mode, on its device, in float32 or bfloat16.
Out: the same encoder, whose forward pass (forward.py) uses the packed weights. On x86 processors
oneDNN wants a weight in blocks; for one sentence, packing it anew at each product, as
torch.nn.functional.linear does, takes as long as the product. GELU becomes a part of the product.
Elsewhere only query, key and value are joined once. A family that padded.py computes stays as it
is.
Not supported: training, saving or moving the encoder afterwards. Its own copies are freed.
"""

import platform
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from storyflower.model import forward
from storyflower.model.forward import Product

X86 = ("x86_64", "AMD64")
# What torch.compile makes of a linear layer. torch has no public names for these: another version
# may lack them.
MKLDNN = torch.ops.mkldnn
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")


def pack(encoder: nn.Module) -> None:
    """Pack the weights of every layer. Results stay equal to some 1e-6 of float32."""
    if encoder.config.model_type not in forward.UNPADDED:
        return
    gelu = getattr(encoder.config, "hidden_act", None) or getattr(encoder.config, "activation", "")
    with torch.inference_mode():
        encoder.packed = [packed_layer(layer, gelu == "gelu") for layer in forward.layers(encoder)]


def packed_layer(layer: forward.Layer, gelu: bool) -> forward.Layer:
    fused = gelu and able(layer.widen.weight)
    result = replace(
        layer,
        packed=product(*layer.joined()),
        mix=product(layer.mix.weight, layer.mix.bias),
        widen=product(layer.widen.weight, layer.widen.bias, "gelu" if fused else "none"),
        narrow=product(layer.narrow.weight, layer.narrow.bias),
        **({"activation": nn.Identity()} if fused else {}),
    )
    for part in (layer.query, layer.key, layer.value, layer.mix, layer.widen, layer.narrow):
        part.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    return result


def able(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies on this device, in the weight's precision."""
    if weight.device.type != "cpu" or platform.machine() not in X86:
        return False
    if not torch.backends.mkldnn.is_available() or not all(hasattr(MKLDNN, op) for op in OPERATORS):
        return False
    return weight.dtype == torch.float32 or MKLDNN._is_mkldnn_bf16_supported()


def product(weight: torch.Tensor, bias: torch.Tensor, after: str = "none") -> Product:
    """(tokens, columns) → weight · row + bias, then `after`: none or gelu."""
    if not able(weight):
        return partial(functional.linear, weight=weight, bias=bias)
    # In bfloat16 the blocks for one row: those for many leave one of two cores idle at some 500 to
    # 1,300 rows, a usual batch. In float32 they would be slower.
    rows = 1 if weight.dtype == torch.bfloat16 else None
    packed = MKLDNN._reorder_linear_weight(weight, rows)
    return lambda rows: MKLDNN._linear_pointwise(rows, packed, bias, after, [], "none")
