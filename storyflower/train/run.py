"""One complete training run: fit() with its inputs, its outputs and its copy in MLflow.

In: the params and the paths of the earlier stages' outputs.
Out: the classifier, the history, and a record of the run, to which the evaluate stage adds. A run
that died resumes from its newest checkpoint, and as the same run in MLflow. The final state stays
as a checkpoint until the evaluate stage discards it: only then has DVC recorded the outputs. The
loop itself, fit.py, does not handle output files or MLflow.

What MLflow gets, from run.json and then from the evaluate stage:
- params: all that can change a result, the card's values for "auto"; pretokenize and tokenizer
- tags: commit, DVC's name of the experiment, user, Python, libraries, device, processes, threads,
  the encoder's source and revision, fingerprint, micro_batch_used, the classifier's digest
- dataset: the corpus and the digest of its dialogues
- metrics of each epoch: the columns of history.csv
- metrics of the run: kept_epoch (keep: best) and temperature (dev_share); from evaluate, as
  final_…, the numbers of metrics.json outside its lists
- files, from evaluate: metrics.json, history.csv, the pictures of reports/
"""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from storyflower.common import locks, repository
from storyflower.common.errors import InputError
from storyflower.common.files import read_json, sha256
from storyflower.common.params import Params
from storyflower.interim import checkpoint_folders
from storyflower.interim.history import Epoch, best_epoch, write_history
from storyflower.interim.labels import LabelIndex, check_numbers
from storyflower.interim.tokens import TokenArrays, check_tokenizer
from storyflower.model import scoring
from storyflower.model.device import Placement, choose
from storyflower.model.folder import build_classifier, digest, save_classifier
from storyflower.model.processes import joined
from storyflower.model.temperature import fit_temperature
from storyflower.tracking.record import CLASSIFIER_TAG, continued, new_record
from storyflower.tracking.run import Run
from storyflower.train import checkpoint, memory
from storyflower.train.dev import held_back, take
from storyflower.train.fit import fit


@memory.enough()
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
    """Train a classifier; write its folder, history.csv and, to `record`, the run's record.

    `lock` is held the whole time, so that two trainings never write the same outputs. With several
    processes (torchrun), all train, and the first one does everything else.
    """
    placement = choose(params.device, params.precision)
    memory.keep_freed()
    with ExitStack() as locked, ExitStack() as stack:  # unlocked last
        ranks = stack.enter_context(joined(placement.device))
        if ranks.first:
            repository.check_clone()
            locked.enter_context(locks.acquire(lock, "still trains here"))
            print(placement, flush=True)
        ranks.wait()
        card = read_json(encoder / "card.json")
        index = LabelIndex.load(labels)
        check_tokenizer(tokens, encoder)
        check_numbers(index.names, labels, table=dialogues, tokens=tokens, target=params.target)
        training = TokenArrays.load(tokens, "Training")
        params = params.resolved(card, rows=len(training))
        if params.mask_rate and card["mask_id"] is None:
            raise InputError("mask_rate: this encoder's vocabulary has no [MASK]; set it to 0")
        decisive = params.decisive()
        computer = {**machine(placement), "processes": ranks.count}
        fingerprint = checkpoint.fingerprint(
            {"params": decisive, "machine": computer, "code": loaded_code()},
            [tokens, labels, encoder],
        )
        root = checkpoint_folders.root_of(params.checkpoint_dir, repository.main_root())
        checkpoints = stack.enter_context(
            checkpoint.Checkpoints(root, fingerprint, params.checkpoint_minutes, ranks)
        )
        is_dev = held_back(training, params.dev_share, params.seed) if params.dev_share else None
        torch.manual_seed(params.seed)
        network = build_classifier(encoder, len(index), params.dr_rate)
        train_epochs = partial(
            fit,
            network,
            train=training,
            is_dev=is_dev,
            test=TokenArrays.load(tokens, "Validation"),
            params=params,
            placement=placement,
            mask_id=card["mask_id"],
            checkpoints=checkpoints,
            ranks=ranks,
        )
        if not ranks.first:
            with checkpoints.stop:
                train_epochs(on_epoch=lambda _: None)
            return
        new = new_record(
            experiment=params.corpus,
            params={**decisive, "pretokenize": card["pretokenize"], "tokenizer": card["tokenizer"]},
            tags={
                "device": str(placement),
                "processes": str(ranks.count),
                "threads": str(torch.get_num_threads()),
                "encoder_source": card["source"],
                "encoder_revision": card.get("revision") or "",
                "fingerprint": fingerprint[: checkpoint_folders.SAYS_WHICH],
            },
            dataset=dialogues,
        )
        with Run(continued(new, checkpoints.saved_extra)) as run:

            def note(rows: list[Epoch]) -> None:
                write_history(rows, history)  # our own file first, then MLflow
                run.log(epoch_metrics(rows[-1]), rows[-1].epoch)

            checkpoints.extra = lambda: asdict(run.record)
            with checkpoints.stop:
                state = train_epochs(on_epoch=note)
            rows = state.history
            write_history(rows, history)  # needed if all epochs were already in the checkpoint
            # Smaller than the param where memory ran out
            run.record.tags["micro_batch_used"] = str(state.micro_batch or "none")
            results = {}
            if params.keep == "best":
                results["kept_epoch"] = best = best_epoch(rows)
                print(f"kept: epoch {best}, the best on the dev part", flush=True)
            if params.average_last > 1:
                first = len(rows) - params.average_last + 1
                print(
                    f"average_last: the weights are the mean of those after epochs {first} to "
                    f"{len(rows)}; evaluate prints their accuracy on Validation",
                    flush=True,
                )
            if is_dev is not None:
                dev = take(training, is_dev)
                logits = scoring.logits(network, dev, placement)
                results["temperature"] = temperature = fit_temperature(logits, dev.labels)
                print(f"temperature {temperature:g}, from {len(dev)} rows of the dev part")
            run.log_results(results)
            # The params that made the model, but nothing that differs between two equal runs.
            facts = {"params": decisive, "temperature": results.get("temperature")}
            save_classifier(network, classifier, encoder=encoder, labels=index, facts=facts)
            run.record.tags[CLASSIFIER_TAG] = digest(classifier)
        run.record.save(record)


def machine(placement: Placement) -> dict[str, Any]:
    """The properties of this machine that can change the bytes of the trained model."""
    if placement.device.type == "cuda":
        processor: Any = torch.cuda.get_device_name(placement.device)
    elif placement.device.type == "cpu":
        processor = [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    else:
        processor = placement.accelerators
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"processor": processor, "precision": placement.precision, **libraries}


def loaded_code(*packages: str) -> dict[str, str]:
    """The modules of storyflower and of `packages` that this process imported: name → sha256."""
    prefixes = tuple(f"{package}." for package in ("storyflower", *packages))
    return {
        name: sha256(Path(module.__file__))
        for name, module in sorted(sys.modules.items())
        if name.startswith(prefixes) and module.__file__
    }


def epoch_metrics(row: Epoch) -> dict[str, float]:
    return {
        key: value for key, value in asdict(row).items() if key != "epoch" and value is not None
    }
