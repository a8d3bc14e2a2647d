"""How the service answers; the command line sets it. This module needs no packages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The limits of a worker, and who may ask it."""

    batch_limit: int = 32  # texts in one scoring call
    window: float = 0.002  # seconds that a request waits for others when nothing is computed
    queue: int = 256  # requests that may wait
    precision: str = "fp32"  # or bf16: Classifier.load
    deadline: float = 30.0  # seconds for a body to arrive, and again for its answer
    token: str | None = None
    origins: tuple[str, ...] = ()  # that browsers may call from
