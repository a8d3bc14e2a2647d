"""Baselines that a model must beat: the majority class, and TF-IDF + logistic regression.

In: Training texts and classes, Validation texts.
Out: class probabilities for the same rows that the classifier is scored on. Nothing is random.
"""

import warnings
from collections.abc import Iterable
from itertools import islice

import numpy as np

MAX_TEXTS = 60_000  # training texts, about 6 kB of n-grams each; the real corpus has fewer
BLOCK = 8192  # texts classified at a time


def majority(train_labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Each class's share of Training, repeated for every row: float32 (rows, classes), read-only.

    So the predicted class is always the most frequent one.
    """
    shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.broadcast_to(shares.astype(np.float32), (rows, classes))  # stores only one row


def tfidf_logistic_regression(
    train_texts: list[str], train_labels: np.ndarray, texts: Iterable[str], classes: int
) -> np.ndarray:
    """Probabilities, float32 (rows, classes), of a linear model on character 1-4-grams.

    scikit-learn's TfidfVectorizer (n-grams within words, sublinear counts, n-grams of at least two
    texts) and LogisticRegression with C=4. This is the usual strong baseline for short Korean
    texts: because of particles and endings, most whole words are rare.
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

    # In a very small corpus, perhaps no n-gram occurs in two texts.
    vectorizer, features = fit_features(2 if len(train_texts) >= 100 else 1)
    model = LogisticRegression(C=4.0, max_iter=300)
    with warnings.catch_warnings():
        # Stopping at 300 iterations changes only the fourth decimal of the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, train_labels)
    texts = iter(texts)
    blocks = []
    while block := list(islice(texts, BLOCK)):
        result = np.zeros((len(block), classes), dtype=np.float32)
        result[:, model.classes_] = model.predict_proba(vectorizer.transform(block))
        blocks.append(result)
    return np.concatenate(blocks)
