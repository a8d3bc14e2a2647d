"""Fixtures that many tests share: the files between the stages, a classifier, a repository."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import (
    TINY_PARAMS,
    dialogue_rows,
    new_repository,
    params_of,
    write_tiny_encoder,
    write_workbook,
)

# Nothing here imports torch at the top: the process that only hands tests out would wait for it.


def pytest_configure() -> None:
    """One thread, for torch is not imported yet and its threads wait for each other by spinning.

    The models here are so small that a second thread is no help, and on a busy machine it makes
    them thirty times slower.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gc.set_threshold(1_000_000)  # as stages/ does, and before the imports that it is for


@pytest.fixture(scope="session")
def interim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before training write: dialogues.parquet, labels.json, encoder/, tokens/."""
    from storyflower.encoder import prepare
    from storyflower.ingest import ingest
    from storyflower.interim import labels
    from storyflower.tokenize import tokenize

    root = tmp_path_factory.mktemp("interim")
    write_workbook(root / "sample/표본_Training.xlsx", dialogue_rows(60, seed=1))
    write_workbook(root / "sample/표본_Validation.xlsx", dialogue_rows(24, seed=2))
    table, index, target = root / "dialogues.parquet", root / "labels.json", "major"
    ingest.ingest(
        root / "sample", table, root / "ingest.json", turns=2, target=target, max_dropped=0.05
    )
    labels.build(table, index, target=target)
    prepare.prepare(write_tiny_encoder(root), root / "encoder")
    tokenize.tokenize(
        table,
        index,
        root / "encoder",
        root / "tokens",
        root / "tokens.json",
        target=target,
        max_len=TINY_PARAMS["max_len"],
    )
    return root


@pytest.fixture(scope="session")
def classifier(interim: Path) -> Path:
    """The folder of a classifier trained until it knows WORDS; history.csv lies beside it."""
    import torch

    from storyflower.interim.history import write_history
    from storyflower.interim.labels import LabelIndex
    from storyflower.interim.tokens import TokenArrays
    from storyflower.model.device import choose
    from storyflower.model.folder import build_classifier, save_classifier
    from storyflower.train import fit

    rate = {"learning_rate": 3e-3, "optimizer": "adamw", "mask_rate": 0.0}
    params = params_of(**{**TINY_PARAMS, **rate, "num_epochs": 8, "dr_rate": 0.1})
    index = LabelIndex.load(interim / "labels.json")
    torch.manual_seed(params.seed)
    network = build_classifier(interim / "encoder", len(index), params.dr_rate)
    state = fit.fit(
        network,
        train=TokenArrays.load(interim / "tokens", "Training"),
        test=TokenArrays.load(interim / "tokens", "Validation"),
        params=params,
        placement=choose("cpu", "fp32"),
        on_epoch=lambda _: None,
    )
    write_history(state.history, interim / "history.csv")
    folder = interim / "classifier"
    save_classifier(
        network,
        folder,
        encoder=interim / "encoder",
        labels=index,
        facts={"params": params.model_dump()},
    )
    return folder


@pytest.fixture(scope="session")
def make_repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A git and DVC repository with the project's own files, a tiny corpus and a tiny encoder."""

    def make(**values: object) -> Path:
        return new_repository(tmp_path_factory.mktemp("repository"), **values)

    return make
