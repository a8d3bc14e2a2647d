"""models/classifier/ + Validation → reports/"""

from pathlib import Path

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.evaluate import evaluate


def main() -> None:
    repository.refuse_what_is_lost()
    params = Params.load()
    repository.close_folders()
    result = evaluate.evaluate(
        classifier=Path("models/classifier"),
        tokens=Path("data/interim/tokens"),
        dialogues=Path("data/interim/dialogues.parquet"),
        history=Path("reports/history.csv"),
        record=Path("reports/run.json"),
        reports=Path("reports"),
        predictions=Path("data/interim/predictions.parquet"),
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
    for line in [*(baseline["verdict"] for baseline in result["baselines"]), *result["notes"]]:
        print(line)


if __name__ == "__main__":
    exit_with_line(main)
