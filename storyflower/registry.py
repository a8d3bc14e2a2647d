"""The registry of models: versions of a classifier in MLflow, and which of them is the champion.

In: a classifier's folder, and the predictions that the evaluate stage made with it.
Out: a version of a registered model, which any machine with MLflow can load, and the alias
`champion` on the version that has proved better than the one before it. `resolve` finds the folder
of a version again.
Not supported: comparing what was scored on different rows; deleting versions (MLflow does that).
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import pyarrow.parquet as pq

from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.common.repository import main_root
from storyflower.evaluate import metrics
from storyflower.model.folder import classifier_files, digest, load_classifier
from storyflower.predict import Classifier
from storyflower.tracking import mlflow
from storyflower.tracking.record import CLASSIFIER_TAG, KEY_TAG, OUTBOX, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERED = "models:/"  # how the name of a registered model begins
CHAMPION = "champion"
COLUMNS = ["text", "actual", "right"]  # of the predictions
EXPERIMENT = "registered"  # of runs for classifiers whose training MLflow does not know
RESULTS = "validation"  # the run's folder for what a classifier got right
CACHE = OUTBOX.parent / "models"  # what came from a server, under the main repository's root
CODE = Path(__file__).with_name("pyfunc_model.py")
EXAMPLE = "내일 발표가 있어서 자꾸 손이 떨려"  # invented; no corpus has it
# What an environment for a registered model needs, at the versions that are installed here
PACKAGES = (
    "mlflow",
    "pandas",
    "torch",
    "transformers",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "python-calamine",
    "xlsxwriter",
    "filelock",
    "tqdm",
    "psutil",
)
SEED = 42  # of the bootstrap
SECONDS = "120"  # that a server may take over one part of a large file


@dataclass(frozen=True)
class Outcome:
    """Which rows of Validation a classifier got right, without the rows themselves."""

    rows: str  # a digest of their texts and labels, in order
    right: np.ndarray  # (rows,) bool


@dataclass(frozen=True)
class Registration:
    """A version of a registered model."""

    name: str
    version: int
    new: bool  # False if this classifier had been registered before
    champion: bool
    sentence: str  # why it is the champion, or why not


def register(*, model: str, name: str, predictions: Path, record: Path, root: Path) -> Registration:
    """Register the classifier of a folder, and make it the champion if it is the better one.

    `predictions` is what evaluate wrote with it, `record` the training's reports/run.json (which
    may be missing), `root` the main repository's root. A classifier that is registered already gets
    no second version; a `model` such as models:/storyflower@champion is scored on the rows of
    `predictions`, whoever made these. Raises InputError; then no version was added and the alias
    was not moved.
    """
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        raise InputError("--name: expected letters, digits, '.', '-' and '_'")
    folder = resolve(model, root)
    _, document = load_classifier(folder)
    classifier = digest(folder)
    if model.startswith(REGISTERED):
        outcome = outcome_of(scored_anew(rows_of(predictions), folder))
    else:  # what evaluate wrote
        outcome = outcome_of(rows_of(predictions, classifier))
    training = record_of(record, classifier)
    with (
        mlflow.refusing("MLflow"),
        locks.acquire(root / OUTBOX.parent / "register.lock", "registers a model"),
    ):
        client, experiment = connect(training.experiment if training else EXPERIMENT, root)
        champion = version_at(client, name, CHAMPION)
        known = known_version(client, name, classifier)
        better, reason = True, "there was none"
        if champion and known and int(champion.version) == int(known.version):
            better, reason = False, "it was so before"
        elif champion:
            rival = read_saved(client, champion, outcome.rows)
            better, reason = compare(outcome.right, rival)
        run = known.run_id if known else run_of(client, experiment, training, classifier, root)
        save_outcome(client, run, classifier, outcome)
        version = known or add_version(
            client,
            experiment=experiment,
            run=run,
            model=folder,
            classifier=classifier,
            labels=document["labels"],
            name=name,
        )
        if better:
            client.set_registered_model_alias(name, CHAMPION, version.version)
        number = int(version.version)
        stays = champion is not None and not better
        holder = int(champion.version) if stays else number
        sentence = f"version {holder} {'stays' if stays else 'is now'} the champion: {reason}"
        client.update_model_version(name, version.version, sentence)
    return Registration(name, number, known is None, holder == number, sentence)


def connect(experiment: str, root: Path) -> tuple["MlflowClient", str]:
    """As tracking's connect: it gives up soon; from then on, uploads may take their time."""
    chosen = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    connected = mlflow.connect(experiment, root)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = chosen or SECONDS
    return connected


def known_version(client: "MlflowClient", name: str, classifier: str) -> "ModelVersion | None":
    """The first version that holds this classifier, if any."""
    versions = client.search_model_versions(f"name = '{name}'")
    same = [each for each in versions if each.tags.get(CLASSIFIER_TAG) == classifier]
    return min(same, key=lambda each: int(each.version)) if same else None


def scored_anew(batches: Iterable[dict[str, list]], folder: Path) -> Iterator[dict[str, list]]:
    """Rows with what a classifier gets right of them now; computes in float32."""
    classifier = Classifier.load(folder)
    for rows in batches:
        answers = [row.label for row in classifier.predict(rows["text"])]
        rows["right"] = [a == b for a, b in zip(answers, rows["actual"], strict=True)]
        yield rows


def outcome_of(batches: Iterable[dict[str, list]]) -> Outcome:
    """The outcome of rows, given as columns text, actual and right."""
    rows, right = hashlib.sha256(), []
    for batch in batches:
        for pair in zip(batch["text"], batch["actual"], strict=True):
            rows.update(json.dumps(pair).encode() + b"\n")
        right += batch["right"]
    return Outcome(rows.hexdigest(), np.array(right, dtype=bool))


def rows_of(predictions: Path, classifier: str | None = None) -> Iterator[dict[str, list]]:
    """The columns COLUMNS, a batch at a time.

    Raises InputError for a file that is missing, damaged or made with another `classifier`.
    """
    try:
        file = pq.ParquetFile(predictions)
        made_with = (file.schema_arrow.metadata or {}).get(b"classifier")
        if classifier and made_with != classifier.encode():
            raise InputError(
                f"{predictions}: not made with this classifier; 'dvc repro' scores "
                "models/classifier"
            )
        for batch in file.iter_batches(columns=COLUMNS):
            yield batch.to_pydict()
    except FileNotFoundError:
        raise InputError(f"{predictions}: not found; 'dvc repro' makes it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{predictions}: damaged ({type(error).__name__}); 'dvc repro'") from None


def record_of(file: Path, classifier: str) -> Record | None:
    """The record of the run that trained this classifier; None if the file is of another run."""
    try:
        record = Record.load(file)
    except (OSError, ValueError, TypeError):
        return None
    return record if record.tags.get(CLASSIFIER_TAG) == classifier else None


def run_of(
    client: "MlflowClient", experiment: str, training: Record | None, classifier: str, root: Path
) -> str:
    """The id of the run that trained the classifier, or of a run made for it."""
    if training:
        folder = root / OUTBOX / training.key
        with locks.acquire(locks.beside(folder), f"works on the run {training.name}"):
            # Changes nothing if MLflow has the run. Its files are evaluate's to deliver.
            mlflow.push(replace(training, artifacts=[]), folder, root)
            if not folder.exists():
                locks.remove_files(locks.beside(folder))
    runs = client.search_runs([experiment], f"tags.`{CLASSIFIER_TAG}` = '{classifier}'")
    if training:
        runs = [run for run in runs if run.data.tags.get(KEY_TAG) == training.key]
    if runs:
        return runs[0].info.run_id
    run = client.create_run(
        experiment, tags={CLASSIFIER_TAG: classifier}, run_name=f"register-{classifier[:7]}"
    )
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def results_file(classifier: str, rows: str) -> str:
    return f"{RESULTS}/{classifier[:16]}-{rows[:16]}.npy"


def save_outcome(client: "MlflowClient", run: str, classifier: str, outcome: Outcome) -> None:
    """Keep the outcome with the run; doing it again changes nothing."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work, Path(results_file(classifier, outcome.rows)).name)
        np.save(file, outcome.right, allow_pickle=False)
        client.log_artifact(run, str(file), RESULTS)


def read_saved(client: "MlflowClient", champion: "ModelVersion", rows: str) -> np.ndarray:
    """Which of these rows the champion got right, (rows,) bool. Raises InputError."""
    name = results_file(champion.tags.get(CLASSIFIER_TAG, ""), rows)
    if name not in {file.path for file in client.list_artifacts(champion.run_id, RESULTS)}:
        raise InputError(
            f"version {champion.version}, the champion, was scored on other rows of Validation; "
            f"score it on these first: register --model {REGISTERED}{champion.name}@{CHAMPION}"
        )
    with tempfile.TemporaryDirectory() as work:
        return np.load(client.download_artifacts(champion.run_id, name, work), allow_pickle=False)


def compare(ours: np.ndarray, champions: np.ndarray) -> tuple[bool, str]:
    """Whether ours is better on the same rows, (rows,) bool each, and the figures that say so."""
    gains = ours.astype(np.int64) - champions
    low, high = metrics.bootstrap_mean(gains, SEED)
    figures = (
        f"the new version's accuracy is {100 * gains.mean():+.1f} points from the old champion's "
        f"on the same {len(gains)} rows, 95% interval {100 * low:+.1f} to {100 * high:+.1f}"
    )
    apart = int(np.count_nonzero(gains))
    if low > 0 and apart < metrics.FEWEST_APART:
        few = f"only one of the two is right on {apart} rows, and {metrics.FEWEST_APART} are needed"
        return False, f"{figures}, but {few}"
    return low > 0, f"{figures}, and its lower end is {'' if low > 0 else 'not '}above 0"


def add_version(
    client: "MlflowClient",
    *,
    experiment: str,
    run: str,
    model: Path,
    classifier: str,
    labels: list[str],
    name: str,
) -> "ModelVersion":
    """Log the classifier as a pyfunc to a run and register it; return the new version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    tags = {CLASSIFIER_TAG: classifier}
    logged = client.create_logged_model(experiment, "classifier", source_run_id=run, tags=tags)
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    with tempfile.TemporaryDirectory() as work:
        about = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run,
            model_id=logged.model_id,
        )
        save_pyfunc(
            Path(work, "model"), model=model, classifier=classifier, labels=labels, about=about
        )
        client.log_model_artifacts(logged.model_id, str(Path(work, "model")))
    client.finalize_logged_model(logged.model_id, "READY")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not logged.model_uri, which MLflow looks up in the store of the process, not of the client.
    place = logged.artifact_location
    return client.create_model_version(name, place, run_id=run, tags=tags, model_id=logged.model_id)


def save_pyfunc(
    folder: Path, *, model: Path, classifier: str, labels: list[str], about: Any = None
) -> None:
    """Write the folder of an MLflow model. Raises InputError if the classifier changes meanwhile.

    Its code is this package, which is on no package index.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec("string", "text")]),
        Schema([ColSpec("string", "label"), *(ColSpec("double", f"p_{name}") for name in labels)]),
    )
    with tempfile.TemporaryDirectory() as work:
        staged = Path(work, classifier)  # the folder's name tells what it holds: pyfunc_model.py
        staged.mkdir()
        for name in classifier_files(model):
            shutil.copyfile(model / name, staged / name)
        pyfunc.save_model(
            folder,
            mlflow_model=about,
            python_model=str(CODE),
            artifacts={"classifier": str(staged)},
            code_paths=[str(CODE.parent)],
            # An index has 2.13.0 for 2.13.0+cpu
            pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in PACKAGES],
            signature=signature,
            input_example=pd.DataFrame({"text": [EXAMPLE]}),
        )
    if digest(folder / "artifacts" / classifier) != classifier:
        raise InputError(f"{model}: it changed while it was read; run it again")


def resolve(model: str, root: Path | None = None) -> Path:
    """The folder of a classifier: a folder as it is, or that of models:/NAME@ALIAS or …/VERSION.

    What lies on a server is copied to .storyflower/models of `root` once, by default the main
    repository's. Raises InputError if there is no such version, or if its files are not those that
    were registered.
    """
    if not model.startswith(REGISTERED):
        return Path(model)
    root = root or main_root()
    parts = re.fullmatch(r"models:/([\w.-]+)(?:@([\w.-]+)|/(\d+))", model)
    if not parts:
        raise InputError("--model: expected a folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = parts.groups()
    with mlflow.refusing("MLflow"):
        client = mlflow.client_of_store(root)
        version = version_at(client, name, alias or number)
        if version is None:
            raise InputError(f"{model}: not in {mlflow.shown(mlflow.tracking_uri(root))}")
        classifier = version.tags.get(CLASSIFIER_TAG, "")
        if not re.fullmatch("[0-9a-f]{64}", classifier):
            raise InputError(f"{model}: not registered with 'storyflower register'")
        folder = fetched(client, version, classifier, root)
    if digest(folder) != classifier:
        raise InputError(f"{folder}: not the classifier that was registered; restore or remove it")
    return folder


def version_at(client: "MlflowClient", name: str, where: str) -> "ModelVersion | None":
    """A version by its number or its alias; None if there is none."""
    from mlflow.exceptions import MlflowException

    find = client.get_model_version if where.isdecimal() else client.get_model_version_by_alias
    try:
        return find(name, where)
    except MlflowException as error:
        # A missing alias is an invalid value to MLflow.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def fetched(client: "MlflowClient", version: "ModelVersion", classifier: str, root: Path) -> Path:
    """The version's classifier on this machine's disk; fetched from a server once."""
    from mlflow.artifacts import download_artifacts

    place = client.get_model_version_download_uri(version.name, version.version)
    source = f"{place}/artifacts/{classifier}"
    if urlparse(place).scheme in ("", "file"):
        return Path(download_artifacts(artifact_uri=source))
    folder = root / CACHE / classifier
    with locks.acquire(locks.beside(folder), "fetches this model"):
        if not folder.exists():
            with replacing() as beside:
                part = beside(folder)
                download_artifacts(
                    artifact_uri=source, dst_path=str(part), tracking_uri=mlflow.tracking_uri(root)
                )
                if (part / classifier).is_dir():  # some stores keep the folder's own name
                    for file in (part / classifier).iterdir():
                        file.rename(part / file.name)
                    (part / classifier).rmdir()
    return folder
