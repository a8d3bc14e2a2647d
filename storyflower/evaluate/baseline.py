"""What a model must beat: the majority class, and TF-IDF + logistic regression.

In: Training texts and classes, Validation texts.
Out: predicted classes and probabilities on the same rows that the classifier is scored on. No
random choice is made.
"""

import warnings
from collections.abc import Iterable
from itertools import islice

import numpy as np

MAX_TEXTS = 60_000  # learnt from, at about 6 kB of n-grams each: more than the real corpus has
BLOCK = 8192  # texts classified at a time


def majority(train_labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Each class's share of Training, for every row: float32 (rows, classes), read-only.

    Its most probable class is always the most frequent one.
    """
    shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.broadcast_to(shares.astype(np.float32), (rows, classes))  # one row in memory


def tfidf_logistic_regression(
    train_texts: list[str], train_labels: np.ndarray, texts: Iterable[str], classes: int
) -> np.ndarray:
    """Probabilities, float32 (rows, classes), of a linear model on character 1-4-grams.

    scikit-learn's TfidfVectorizer (within words, sublinear counts, at least two texts) and
    LogisticRegression with C=4, the usual strong baseline for short texts in Korean, where
    particles and endings make whole words rare.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def fit_features(min_df: int) -> tuple[TfidfVectorizer, object]:
        vectorizer = TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=(1, 4),
            sublinear_tf=True,
            min_df=min_df,
            dtype=np.float32,
        )
        return vectorizer, vectorizer.fit_transform(train_texts)

    # A handful of texts may have no n-gram twice.
    vectorizer, features = fit_features(2 if len(train_texts) >= 100 else 1)
    model = LogisticRegression(C=4.0, max_iter=300)
    with warnings.catch_warnings():
        # 300 iterations short of convergence change the accuracy in the fourth place.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, train_labels)
    texts = iter(texts)
    blocks = []
    while block := list(islice(texts, BLOCK)):
        result = np.zeros((len(block), classes), dtype=np.float32)
        result[:, model.classes_] = model.predict_proba(vectorizer.transform(block))
        blocks.append(result)
    return np.concatenate(blocks)
