"""params.yaml, checked once and frozen.

In: a YAML file with exactly the keys of `Params`.
Out: a frozen `Params`. Every stage reads it once, at its start, because a queued experiment may
rewrite the file while another one runs.
Not supported: nesting. The keys are flat so that `dvc exp run -S num_epochs=10` needs no path.
"""

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import read_yaml

DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("auto", "adamw", "notebook")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TARGETS = ("major", "fine")
# On the model. (Two processes add up in another order than one; MLflow has their number as a tag.)
WITHOUT_EFFECT = ("log_interval", "checkpoint_minutes", "checkpoint_dir", "launcher")


@dataclass(frozen=True)
class Params:
    """The knobs of a run. Units and ranges stand beside each field."""

    # What is read
    corpus: str  # a folder name under data/
    target: str  # major (감정_대분류) or fine (감정_대분류/감정_소분류)
    turns: int  # how many 사람문장 make the text, 1..4
    max_dropped: float  # share of a file's rows that may be dropped as unusable, [0, 1]
    # How it is read
    encoder: str  # a card's name: encoders/<encoder>.yaml
    max_len: int  # token ids per text, [CLS] and [SEP] included, 3..512
    # Training
    num_epochs: int  # passes over Training, 1..1000
    batch_size: int  # dialogues per optimizer step, 1..65536
    learning_rate: float | None  # peak, (0, 1]; None ("auto"): the value on the encoder's card
    optimizer: str  # auto (the card's), adamw (torch's) or notebook (transformers 3's AdamW)
    warmup_ratio: float  # share of all steps over which the rate rises from 0, [0, 1]
    max_grad_norm: float  # gradients are scaled down to this L2 norm, > 0
    weight_decay: float  # AdamW's, not on biases and LayerNorm, [0, 1]
    dr_rate: float  # dropout before the linear layer, [0, 1)
    shuffle: bool  # a new order of Training each epoch; false is the notebook's behaviour
    precision: str  # auto, fp32, bf16 or fp16
    device: str  # auto, cpu, cuda or mps
    seed: int  # 0..2**32-1
    log_interval: int  # steps between two log lines, >= 1
    launcher: str  # what starts the train stage, before "-m stages.train": python, torchrun …
    checkpoint_minutes: float  # of training between two checkpoints, (0, 1e6]
    checkpoint_dir: str  # where they lie; auto: .storyflower/checkpoints in the main repository

    def decisive(self) -> dict[str, Any]:
        """The params that a result may depend on: all but those of logging and saving."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}

    def resolved(self, *, learning_rate: float, optimizer: str) -> "Params":
        """These params, with what the encoder's card says in the place of "auto"."""
        return replace(
            self,
            learning_rate=learning_rate if self.learning_rate is None else self.learning_rate,
            optimizer=optimizer if self.optimizer == "auto" else self.optimizer,
        )

    @classmethod
    def load(cls, path: Path = Path("params.yaml")) -> "Params":
        """Read and check a params file.

        Raises InputError naming the key and the value for an unknown key, a missing key, a wrong
        type or a value out of range.
        """
        raw = read_yaml(path, "run this in the repository's root")
        return cls.check(raw, where=str(path))

    @classmethod
    def check(cls, raw: dict[str, Any], where: str = "params") -> "Params":
        """Turn a mapping of key → value into Params; errors as in `load`."""
        known = [field.name for field in fields(cls)]
        for key in raw:
            if key not in known:
                raise InputError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        for key in known:
            if key not in raw:
                raise InputError(f"{where}: key {key!r} is missing")

        def fail(key: str, rule: str) -> InputError:
            return InputError(f"{where}: {key} must be {rule}, got {raw[key]!r}")

        def name(key: str) -> str:
            value = raw[key]
            # A folder or file name and nothing else: it becomes part of a path.
            if not isinstance(value, str) or not re.fullmatch(r"\w[\w.-]*", value):
                raise fail(key, "a plain name (letters, digits, '.', '_', '-')")
            return value

        def choice(key: str, allowed: tuple[str, ...]) -> str:
            if raw[key] not in allowed:
                raise fail(key, "one of " + ", ".join(allowed))
            return raw[key]

        def integer(key: str, low: int, high: int) -> int:
            value = raw[key]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise fail(key, f"a whole number in [{low}, {high}]")
            return value

        def number(
            key: str, low: float, high: float, brackets: str = "[]", other: str = ""
        ) -> float:
            rule = f"{other}a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}"
            value = raw[key]
            # Text, too: YAML 1.1 reads 5e-5 (which `dvc exp run -S` writes) as text.
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise fail(key, rule)
            try:
                value = float(value)
            except (ValueError, OverflowError):
                raise fail(key, rule) from None
            above = value > low if brackets[0] == "(" else value >= low
            below = value < high if brackets[1] == ")" else value <= high
            if not (above and below):
                raise fail(key, rule)
            return value

        def folder(key: str) -> str:
            value = raw[key]
            if not isinstance(value, str) or not value.strip() or not value.isprintable():
                raise fail(key, "auto or a folder")
            return value

        def text(key: str) -> str:
            if not isinstance(raw[key], str) or not raw[key].strip():
                raise fail(key, "a command, such as python")
            return raw[key]

        def boolean(key: str) -> bool:
            if not isinstance(raw[key], bool):
                raise fail(key, "true or false")
            return raw[key]

        auto_rate = raw["learning_rate"] == "auto"
        return cls(
            corpus=name("corpus"),
            target=choice("target", TARGETS),
            turns=integer("turns", 1, 4),
            max_dropped=number("max_dropped", 0, 1),
            encoder=name("encoder"),
            max_len=integer("max_len", 3, 512),
            num_epochs=integer("num_epochs", 1, 1000),
            batch_size=integer("batch_size", 1, 65536),
            learning_rate=None if auto_rate else number("learning_rate", 0, 1, "(]", "auto or "),
            optimizer=choice("optimizer", OPTIMIZERS),
            warmup_ratio=number("warmup_ratio", 0, 1),
            max_grad_norm=number("max_grad_norm", 0, math.inf, "()"),
            weight_decay=number("weight_decay", 0, 1),
            dr_rate=number("dr_rate", 0, 1, "[)"),
            shuffle=boolean("shuffle"),
            precision=choice("precision", PRECISIONS),
            device=choice("device", DEVICES),
            seed=integer("seed", 0, 2**32 - 1),
            log_interval=integer("log_interval", 1, 10**9),
            launcher=text("launcher"),
            checkpoint_minutes=number("checkpoint_minutes", 0, 1e6, "(]"),
            checkpoint_dir=folder("checkpoint_dir"),
        )
