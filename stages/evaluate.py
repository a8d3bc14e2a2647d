"""models/classifier/ + Validation → reports/"""

from pathlib import Path

from storyflower import evaluation, private
from storyflower.errors import exit_with_line
from storyflower.params import Params


def main() -> None:
    params = Params.load()
    private.close_folders()
    result = evaluation.evaluate(
        Path("models/classifier"),
        Path("data/interim/tokens"),
        Path("data/interim/dialogues.parquet"),
        Path("reports/history.csv"),
        Path("reports/run.json"),
        Path("reports"),
        Path("data/interim/predictions.parquet"),
        target=params.target,
        device=params.device,
        precision=params.precision,
        seed=params.seed,
        checkpoint_dir=params.checkpoint_dir,
    )
    print(
        f"accuracy {result['accuracy']:.4f} (95% interval {result['accuracy_low']:.4f} to "
        f"{result['accuracy_high']:.4f}), macro-F1 {result['macro_f1']:.4f}"
    )
    for baseline in result["baselines"]:
        print(baseline["verdict"])


if __name__ == "__main__":
    exit_with_line(main)
