"""What decides about the result of a pretraining, beside the texts."""

from dataclasses import dataclass

SHAPE = ("pieces", "layers", "hidden", "heads")  # what --start brings with it


@dataclass(frozen=True)
class Recipe:
    """The settings of a pretraining; pretrain/__main__.py says what each means."""

    steps: int
    pieces: int = 8000
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    batch_tokens: int = 4096
    max_len: int = 128
    rate: float = 1.5e-3
    warmup: int = 500
    weight_decay: float = 0.01
    seed: int = 42
    precision: str = "auto"
