"""The record of a run: everything that goes to MLflow, in one JSON file.

In: params, tags, metrics with their timestamps, names of files.
Out: a record in the outbox of the main repository, from which the MLflow run can be created, now
or later.
"""

import json
import os
import platform
import re
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import sha256, write_json
from storyflower.common.repository import git_commit, main_root

OUTBOX = Path(".storyflower") / "outbox"  # under the main repository's root
KEY_TAG = "storyflower.key"
KEY = re.compile("[0-9a-f]{32}")  # it becomes a folder's name
CLASSIFIER_TAG = "storyflower.classifier"  # the digest of what the run trained
LIBRARIES = ("torch", "transformers", "sentencepiece", "numpy", "mlflow", "dvc")


@dataclass
class Record:
    """Everything about a run that goes to MLflow. Times are milliseconds since 1970."""

    key: str
    experiment: str
    name: str
    start: int
    params: dict[str, str]
    tags: dict[str, str]
    datasets: dict[str, str]  # name → digest
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, ms, step
    results: list[tuple[str, float, int]] = field(default_factory=list)  # key, value, ms
    artifacts: list[str] = field(default_factory=list)  # file names in the outbox folder
    status: str = "RUNNING"  # or FINISHED, FAILED, KILLED
    end: int | None = None

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read a record; raises OSError, ValueError and TypeError for what is none."""
        record = cls(**json.loads(path.read_text(encoding="utf-8")))
        kinds = {"params": dict, "tags": dict, "datasets": dict, "metrics": list, "results": list}
        if not KEY.fullmatch(record.key):
            raise ValueError(f"{record.key!r} is not the key of a run")
        if odd := [
            key for key, kind in kinds.items() if not isinstance(getattr(record, key), kind)
        ]:
            raise TypeError(f"{odd[0]} is of another type")
        return record

    def save(self, path: Path) -> None:
        """Write the record; a reader sees the old one or the new one, never a part."""
        write_json(asdict(self), path)


def new_record(
    *, experiment: str, params: dict[str, Any], tags: dict[str, str], dataset: Path
) -> Record:
    """A record for a run that starts now; the digest of the file `dataset` is logged."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git_commit()
    dvc_name = os.environ.get("DVC_EXP_NAME")
    digest = sha256(dataset)[:16]
    known = {
        "git_commit": commit,
        "dvc_experiment": dvc_name,
        "dataset_digest": digest,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "stages.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER"),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        **tags,
    }
    return Record(
        key=uuid.uuid4().hex,
        experiment=experiment,
        name=dvc_name or f"repro-{(commit or 'nogit')[:7]}",
        start=milliseconds(),
        params={key: str(value) for key, value in params.items()},
        tags={key: value for key, value in known.items() if value},
        datasets={experiment: digest},
    )


def continued(new: Record, saved: dict[str, Any] | None) -> Record:
    """The record of a resumed run: the saved record with the name and tags of the new one.

    DVC gives an experiment a new name at each call. Without a saved record, returns the new one.
    """
    if saved is None:
        return new
    record = Record(**saved)
    if not KEY.fullmatch(record.key):
        raise InputError(f"checkpoint: {record.key!r} is not the key of a run; remove its folder")
    # Written after every change, so newer than the checkpoint. If it is damaged, the checkpoint's
    # will do: what came after it is trained again.
    with suppress(OSError, ValueError, TypeError):
        record = Record.load(main_root() / OUTBOX / record.key / "record.json")
    record.name, record.tags = new.name, new.tags
    record.status, record.end = "RUNNING", None
    return record


def milliseconds() -> int:
    return int(time.time() * 1000)
