"""A registered model as MLflow runs it: in a service, in a program, on a cluster.

In: a DataFrame with the column text (a string, or null).
Out: a DataFrame of as many rows: label, then p_<class> for every class; all of them null for a text
that is null or says nothing.
MLflow keeps a copy of this file with the model ("models from code") and runs it, under a new name,
at each load; on Spark that is once a task. What must stay in the process therefore lies in the
module that is imported by its full name, and a classifier is read once a process.
A text longer than max_len is read whole, in windows.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from storyflower.common.errors import InputError
from storyflower.model.folder import digest
from storyflower.predict import Classifier
from storyflower.sheets.sheet import says_nothing

KEPT = 2  # classifiers that a process keeps: the one in use, and the next one

_loaded: dict[str, Classifier] = {}  # digest → classifier, the newest last
_loading = threading.Lock()


class RegisteredClassifier(PythonModel):
    """A classifier for MLflow; the artifact `classifier` is a folder whose name is its digest."""

    def load_context(self, context: PythonModelContext) -> None:
        from storyflower import pyfunc_model  # not this copy of it, whose cache would be empty

        self._classifier = pyfunc_model.load_once(Path(context.artifacts["classifier"]))

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Score the column text; the columns are those of the module's docstring.

        Raises InputError for a value that is neither a string nor null; it names the row, from 0.
        """
        texts = texts_of(model_input["text"])
        readable = [text for text in texts if text is not None]
        answers = iter(self._classifier.predict_whole(readable)[0])
        found = [None if text is None else next(answers) for text in texts]
        columns = {"label": np.array([row and row.label for row in found], object)}
        for name in self._classifier.labels:
            shares = [row and row.probabilities[name] for row in found]
            columns[f"p_{name}"] = np.array(shares, float)  # NaN of a None
        frame = pd.DataFrame(columns, model_input.index)
        if len(readable) < len(texts):  # None, for the service's JSON has no NaN
            frame = frame.astype(object).where(frame.notna(), None)
        return frame


def texts_of(values: pd.Series) -> list[str | None]:
    """The texts of a column; None for those that are null or say nothing. Raises InputError."""
    texts: list[str | None] = []
    for number, value in enumerate(values):
        if isinstance(value, str):
            texts.append(None if says_nothing(value) else value)
        elif value is None or value is pd.NA or (isinstance(value, float) and value != value):
            texts.append(None)
        else:
            raise InputError(f"row {number}: text is {type(value).__name__}, not a string")
    return texts


def load_once(folder: Path) -> Classifier:
    """The classifier of a folder whose name is its digest; a second call does not read it again.

    Prints a line on standard error when it reads. Raises InputError if the content has another
    digest, and as Classifier.load.
    """
    with _loading:
        if folder.name not in _loaded:
            if digest(folder) != folder.name:
                raise InputError(f"{folder}: not the classifier that was registered; register anew")
            classifier = Classifier.load(folder)
            while len(_loaded) >= KEPT:
                del _loaded[next(iter(_loaded))]
            _loaded[folder.name] = classifier
            print(
                f"storyflower: classifier {folder.name[:12]} loaded in process {os.getpid()}, "
                f"{torch.get_num_threads()} threads",
                file=sys.stderr,
                flush=True,
            )
        return _loaded[folder.name]


set_model(RegisteredClassifier())
