"""A CUDA graph for each shape of batch: a training step without its kernel launches.

In: a function that computes a batch's loss and gradients.
Out: the same function, recorded once for each shape and then replayed: a step of KoBERT launches
some 1,500 kernels, and at batch 64 their launches take longer than their arithmetic. Batches of
few shapes come from TokenArrays.batch.
Not supported: memory for each shape's activations, which all graphs share.
"""

import sys
from collections.abc import Callable, Iterable

import torch

from storyflower.common.errors import one_line
from storyflower.model.batch import Batch

Compute = Callable[[Batch, torch.Tensor], torch.Tensor]


class Replayed:
    """compute(batch, weight), recorded; its result is overwritten by the next call.

    `compute` must leave its gradients in the parameters' .grad, which are allocated here, once: a
    graph writes to the addresses that it was recorded with. Where recording fails, one line says
    so, and the training goes on without.
    """

    def __init__(self, compute: Compute, parameters: Iterable[torch.nn.Parameter]):
        self.compute = compute
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.usable = True
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: Batch, weight: torch.Tensor) -> torch.Tensor:
        values = [*batch.tensors, weight]
        shape = (batch.width, *(tuple(value.shape) for value in values))
        if self.usable and shape not in self.graphs:
            try:
                self.graphs[shape] = self.record(batch, weight)
            except RuntimeError as error:
                self.usable = False
                reason = one_line(error)
                print(f"note: no CUDA graph ({reason}); training goes on without", file=sys.stderr)
        if shape not in self.graphs:
            return self.compute(batch, weight)
        graph, inputs, result = self.graphs[shape]
        for recorded, value in zip(inputs, values, strict=True):
            recorded.copy_(value)
        graph.replay()
        return result

    def record(
        self, batch: Batch, weight: torch.Tensor
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        here = torch.cuda.current_stream()
        with (
            # Recording draws dropout's random numbers twice more; a shape's first batch must not
            # get others for that, or a resumed training would differ from one in one go.
            torch.random.fork_rng([torch.cuda.current_device()], device_type="cuda"),
            torch.cuda.stream(here),  # a recording that fails stays on its own stream
        ):
            # A pass outside first: libraries allocate and choose kernels, and no graph may see it.
            side = torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self.compute(batch, weight)
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                result = self.compute(batch, weight)
        return graph, [*batch.tensors, weight], result
