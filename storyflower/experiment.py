"""One training run as a whole: fit() with its inputs, its outputs and its mirror in MLflow.

Enters: the params and the paths of the earlier stages' outputs. Leaves: the classifier, the
history, and a record of the run, to which the evaluate stage adds. A run that died goes on from its
newest checkpoint, and as the same run in MLflow. The finished state stays a checkpoint until the
evaluate stage discards it: only then has DVC recorded the outputs. The loop itself, training.py,
knows neither files nor MLflow.
"""

import json
import os
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from storyflower import checkpoint, model, tracking, training
from storyflower.device import Placement, choose
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
    lock: Path,
) -> None:
    """Train a classifier and write its folder, history.csv and the run's record.

    `lock` is held all the while: two trainings never write the same outputs.
    """
    with checkpoint.alone(lock, "still trains here"):
        card = json.loads((encoder / "card.json").read_text(encoding="utf-8"))
        rate = card["learning_rate"] if params.learning_rate is None else params.learning_rate
        optimizer = card["optimizer"] if params.optimizer == "auto" else params.optimizer
        used = {**params.decisive(), "learning_rate": rate, "optimizer": optimizer}
        placement = choose(params.device, params.precision)
        print(placement, flush=True)
        index = LabelIndex.load(labels)
        fingerprint = checkpoint.fingerprint(
            {"params": used, "machine": machine(placement), "code": loaded_code()},
            [tokens, labels, encoder],
        )
        new = tracking.new_record(
            experiment=params.corpus,
            params={**used, "pretokenize": card["pretokenize"], "tokenizer": card["tokenizer"]},
            tags={
                "device": str(placement),
                "threads": str(torch.get_num_threads()),
                "encoder_source": card.get("source") or card["kind"],
                "encoder_revision": card.get("revision") or "",
                "fingerprint": fingerprint[: checkpoint.SAYS_WHICH],
            },
            dataset=dialogues,
        )
        root = checkpoint.root_of(params.checkpoint_dir, tracking.main_root())
        with checkpoint.Checkpoints(root, fingerprint, params.checkpoint_minutes) as checkpoints:
            torch.manual_seed(params.seed)
            network = model.build(encoder, len(index), params.dr_rate)
            with tracking.Run(tracking.continued(new, checkpoints.found)) as run:

                def note(rows: list[Epoch]) -> None:
                    write_history(rows, history)  # our own file first, then its mirror
                    run.log(epoch_metrics(rows[-1]), rows[-1].epoch)

                checkpoints.more = lambda: asdict(run.record)
                with checkpoints.stop:
                    rows = training.fit(
                        network,
                        TokenTable.load(tokens, "Training"),
                        TokenTable.load(tokens, "Validation"),
                        params,
                        learning_rate=rate,
                        optimizer_name=optimizer,
                        placement=placement,
                        on_epoch=note,
                        checkpoints=checkpoints,
                    )
                write_history(rows, history)  # again: all epochs may have been in the checkpoint
                # What made the model, but nothing that differs between two equal runs.
                facts = {"params": used}
                partial = classifier.with_name(classifier.name + ".part")
                shutil.rmtree(partial, ignore_errors=True)
                model.save(network, partial, encoder=encoder, labels=index, facts=facts)
                shutil.rmtree(classifier, ignore_errors=True)
                os.replace(partial, classifier)
            run.record.save(record)


def machine(placement: Placement) -> dict[str, Any]:
    """What the same training would give other bytes on another machine for."""
    if placement.device.type == "cuda":
        processor: Any = torch.cuda.get_device_name(placement.device)
    elif placement.device.type == "cpu":
        processor = [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    else:
        processor = placement.found
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"processor": processor, "precision": placement.precision, **libraries}


def loaded_code() -> dict[str, str]:
    """The project's modules that this process has imported, and the sha256 of each."""
    return {
        name: checkpoint.fingerprint({}, [Path(module.__file__)])
        for name, module in sorted(sys.modules.items())
        if name.startswith("storyflower.") and module.__file__
    }


def epoch_metrics(row: Epoch) -> dict[str, float]:
    return {key: value for key, value in asdict(row).items() if key != "epoch"}
