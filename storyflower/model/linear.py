"""A linear layer that is trained in bfloat16 on a CPU, while its weights stay float32.

In: rows in bfloat16, and one or more nn.Linear that read them.
Out: their results side by side, as autocast computes them, in fewer passes over the memory: the
weights are cast into one tensor, in the place of joined and then cast, and a bias's gradient is a
matrix product.
Not supported: other devices; weights that are not float32.
"""

import torch
from torch import nn
from torch.nn import functional


def in_bfloat16(rows: torch.Tensor, parts: tuple[nn.Linear, ...]) -> torch.Tensor | None:
    """(tokens, columns) → the results of all parts, (tokens, sum of their rows).

    None where another device, precision or kind of layer asks for torch's own way.
    """
    able = rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and torch.is_grad_enabled()
    if not able or any(not isinstance(part, nn.Linear) for part in parts):
        return None
    weights, biases = [part.weight for part in parts], [part.bias for part in parts]
    if any(tensor is None or tensor.dtype != torch.float32 for tensor in weights + biases):
        return None
    return Linear.apply(rows, *weights, *biases)


class Linear(torch.autograd.Function):
    """rows, then float32 weights (rows_i, columns), then float32 biases (rows_i,)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, rows: torch.Tensor, *parts: torch.Tensor
    ) -> torch.Tensor:
        weights, biases = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        ctx.sizes = [len(bias) for bias in biases]
        weight = rows.new_empty(sum(ctx.sizes), rows.shape[1])
        bias = rows.new_empty(sum(ctx.sizes))
        for whole, mine in ((weight, weights), (bias, biases)):
            torch._foreach_copy_(whole.split(ctx.sizes), mine)
        ctx.save_for_backward(rows, weight)
        return functional.linear(rows, weight, bias)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        by_weight = gradient.t() @ rows
        by_bias = (gradient.new_ones(1, len(gradient)) @ gradient)[0]
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            *(part.float() for part in by_weight.split(ctx.sizes)),
            *(part.float() for part in by_bias.split(ctx.sizes)),
        )
