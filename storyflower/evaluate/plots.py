"""The reports' pictures as PNG, with Korean labels in a Korean font.

In: counts and history.
Out: PNG files, the same bytes for the same input. The font is NanumGothic (SIL OFL). Its file comes
from the koreanize-matplotlib package, which is not imported: that needs a module that Python 3.12
removed.
"""

from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from storyflower.evaluate.metrics import Reliability

STYLE = {
    "font.family": "NanumGothic",
    "axes.unicode_minus": False,  # the font has no U+2212
    "text.parse_math": False,  # a label may have two dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
    "savefig.bbox": "tight",  # constrained layout alone cuts off rotated labels
    "savefig.pad_inches": 0.1,
}
MARKED = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)  # thresholds named on the coverage curve
NUMBERS_UP_TO = 20  # classes; a larger matrix has no room for numbers in its cells
LONGEST = 30  # characters of a label beside the matrix; much longer ones would leave it no room


def use_korean_font() -> dict[str, object]:
    """Register the font and return the style that uses it."""
    if all(font.name != "NanumGothic" for font in font_manager.fontManager.ttflist):
        package = Path(find_spec("koreanize_matplotlib").submodule_search_locations[0])
        font_manager.fontManager.addfont(package / "fonts" / "NanumGothic.ttf")
    return STYLE


def confusion_matrix(counts: np.ndarray, names: tuple[str, ...], path: Path) -> None:
    """Draw (classes, classes) counts; the colour is the share of the actual class."""
    classes = len(names)
    side = max(5.0, 0.28 * classes + 2)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(use_korean_font()):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        axes.set_xticks(range(classes), labels, rotation=0 if classes <= 10 else 90)
        axes.set_yticks(range(classes), labels)
        axes.set_xlabel("예측 (predicted)")
        axes.set_ylabel("정답 (actual)")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if classes <= NUMBERS_UP_TO:
            for (row, column), count in np.ndenumerate(counts):
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color)
        figure.colorbar(
            image, label="정답 클래스 안의 비율 (share of the actual class)", shrink=0.8
        )
        figure.savefig(path, format="png", metadata={"Software": None})


def learning_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw loss and accuracy of Training, Validation and, if there is one, the dev part."""
    epochs = [row["epoch"] for row in history]
    panels = (
        ("손실 (loss, nats)", "loss", "test_loss", "dev_loss"),
        ("정확도 (accuracy)", "train_accuracy", "test_accuracy", "dev_accuracy"),
    )
    with matplotlib.rc_context(use_korean_font()):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, (title, train, test, dev) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.plot(epochs, [row[train] for row in history], "o-", label="Training (드롭아웃 켬)")
            axes.plot(epochs, [row[test] for row in history], "s--", label="Validation")
            if dev in history[0]:
                axes.plot(epochs, [row[dev] for row in history], "^:", label="dev (떼어 둔 부분)")
            axes.set_title(title)
            axes.set_xlabel("에폭 (epoch)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        figure.savefig(path, format="png", metadata={"Software": None})


def reliability_diagram(bins: dict[str, Reliability], path: Path) -> None:
    """Draw how often answers of each confidence are right, and below how many rows they are.

    `bins` has one curve or several, by their names; a bin without rows is not drawn.
    """
    with matplotlib.rc_context(use_korean_font()):
        figure = Figure(figsize=(5.2, 6.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot([0, 1], [0, 1], color="gray", linewidth=1, label="완전한 보정 (ideal)")
        for (name, curve), style in zip(bins.items(), ("o--", "s-"), strict=False):
            there = curve.rows > 0
            sure, right = (part[there] / curve.rows[there] for part in (curve.sure, curve.right))
            error = np.abs(curve.sure - curve.right).sum() / curve.rows.sum()
            above.plot(sure, right, style, label=f"{name}: ECE {error:.3f}")
            edges = np.linspace(0, 1, len(curve.rows) + 1)
            below.stairs(curve.rows / curve.rows.sum(), edges, label=name)
        above.set_ylabel("정확도 (accuracy)")
        above.set_xlim(0, 1)
        above.set_ylim(0, 1)
        above.legend(frameon=False, loc="upper left")
        above.grid(alpha=0.3)
        below.set_xlabel("확신: 가장 높은 확률 (confidence)")
        below.set_ylabel("행의 비율 (rows)")
        below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.savefig(path, format="png", metadata={"Software": None})


def coverage_curve(shares: list[tuple[float, int, int]], rows: int, path: Path) -> None:
    """Draw metrics.coverage of so many rows: what share is answered, and how much of it is right.

    Some thresholds are named on the curve.
    """
    with matplotlib.rc_context(use_korean_font()):
        figure = Figure(figsize=(5.6, 4), layout="constrained")
        axes = figure.subplots()
        points = {at: (answered / rows, right / answered) for at, answered, right in shares}
        axes.plot(*zip(*points.values(), strict=True))
        for at in MARKED:
            if at in points:
                axes.plot(*points[at], "o", color="C0")
                axes.annotate(
                    f"{at:g}", points[at], xytext=(4, 5), textcoords="offset points", fontsize=9
                )
        axes.set_xlabel("답한 비율 (share answered)")
        axes.set_ylabel("답한 것의 정확도 (accuracy of the answered)")
        axes.set_title("점의 수: --unsure-below (thresholds)", fontsize=11)
        axes.set_xlim(0, 1.04)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.3)
        figure.savefig(path, format="png", metadata={"Software": None})
