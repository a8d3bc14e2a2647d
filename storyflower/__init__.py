"""StoryFlower (담화): which of six emotions a Korean diary text expresses."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storyflower.predict import (
        UNSURE,
        Classifier,
        Explanation,
        Piece,
        Prediction,
        Reading,
        Word,
    )

__version__ = "0.1.0"
__all__ = ["UNSURE", "Classifier", "Explanation", "Piece", "Prediction", "Reading", "Word"]


def __getattr__(name: str) -> Any:
    # Not imported at the top: every stage imports this package, and few stages need torch.
    if name in __all__:
        from storyflower import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'storyflower' has no attribute {name!r}")
