"""One training run as a whole: fit() with its inputs, its outputs and its mirror in MLflow.

Enters: the params and the paths of the earlier stages' outputs. Leaves: the classifier, the
history, and a record of the run, to which the evaluate stage adds. The loop itself, training.py,
knows neither files nor MLflow.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from storyflower import model, tracking, training
from storyflower.device import choose
from storyflower.history import Epoch, write_history
from storyflower.labels import LabelIndex
from storyflower.params import Params
from storyflower.tensors import TokenTable


def train(
    params: Params,
    *,
    encoder: Path,
    dialogues: Path,
    labels: Path,
    tokens: Path,
    classifier: Path,
    history: Path,
    record: Path,
) -> None:
    """Train a classifier and write its folder, history.csv and the run's record."""
    card = json.loads((encoder / "card.json").read_text(encoding="utf-8"))
    learning_rate = card["learning_rate"] if params.learning_rate is None else params.learning_rate
    optimizer = card["optimizer"] if params.optimizer == "auto" else params.optimizer
    placement = choose(params.device, params.precision)
    print(placement, flush=True)
    torch.manual_seed(params.seed)
    index = LabelIndex.load(labels)
    network = model.build(encoder, len(index), params.dr_rate)
    used = {**asdict(params), "learning_rate": learning_rate, "optimizer": optimizer}
    with tracking.Run(
        tracking.new_record(
            experiment=params.corpus,
            params={**used, "pretokenize": card["pretokenize"], "tokenizer": card["tokenizer"]},
            tags={
                "device": str(placement),
                "threads": str(torch.get_num_threads()),
                "encoder_source": card.get("source") or card["kind"],
                "encoder_revision": card.get("revision") or "",
            },
            dataset=dialogues,
        )
    ) as run:

        def note(rows: list[Epoch]) -> None:
            write_history(rows, history)  # our own file first, then its mirror
            run.log(epoch_metrics(rows[-1]), rows[-1].epoch)

        training.fit(
            network,
            TokenTable.load(tokens, "Training"),
            TokenTable.load(tokens, "Validation"),
            params,
            learning_rate=learning_rate,
            optimizer_name=optimizer,
            placement=placement,
            on_epoch=note,
        )
        # What made the model, but nothing that differs between two equal runs.
        model.save(network, classifier, encoder=encoder, labels=index, facts={"params": used})
    run.record.save(record)


def epoch_metrics(row: Epoch) -> dict[str, float]:
    return {key: value for key, value in asdict(row).items() if key != "epoch"}
