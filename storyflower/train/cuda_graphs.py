"""A CUDA graph for each batch shape, which saves a training step's kernel launches.

In: a function that computes a batch's loss and adds its gradients to those that are there.
Out: the same function, recorded once for each shape and then replayed. A step of KoBERT launches
about 1,500 kernels, and at batch size 64 the launches take longer than the arithmetic. make_batch
(model/batch.py) keeps the number of shapes small.
Not supported: steps of several batches (recording a later one would drop the gradients of those
before it); separate memory for each shape's activations: all graphs share one pool.
"""

import sys
from collections.abc import Callable, Iterable

import torch

from storyflower.common.errors import one_line
from storyflower.model.batch import Batch

Compute = Callable[[Batch, torch.Tensor], torch.Tensor]


class Replayed:
    """compute(batch, weight) as recorded graphs; the next call may overwrite the result.

    `compute` must add its gradients to the parameters' .grad tensors. They are allocated once,
    here: a graph always writes to the addresses it was recorded with. The caller sets them to 0
    with `clear` before each step. If recording fails, one note is printed and the training goes on
    without new graphs.
    """

    def __init__(self, compute: Compute, parameters: Iterable[torch.nn.Parameter]):
        self.compute = compute
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.usable = True
        self.gradients = []
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            self.gradients.append(parameter.grad)

    def clear(self) -> None:
        """Set the gradients to 0 where they lie."""
        torch._foreach_zero_(self.gradients)

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
            self.clear()  # of what the run before the recording has added
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
            # Recording draws dropout's random numbers two extra times. A shape's first batch must
            # still get its usual numbers, or a resumed training would differ from an unbroken one.
            torch.random.fork_rng([torch.cuda.current_device()], device_type="cuda"),
            torch.cuda.stream(here),  # returns to this stream even if recording fails
        ):
            # First a run without recording: libraries allocate memory and choose kernels, and that
            # must not be part of a graph.
            side = torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self.compute(batch, weight)
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                result = self.compute(batch, weight)
        return graph, [*batch.tensors, weight], result
