"""Prints the figures of data/sample/README.md: what the pieces give away, and what they do not.

    PYTHONPATH=. python data/writers/measure.py            # some minutes
    PYTHONPATH=. python data/writers/measure.py --quick    # without what is left out

Everything is deterministic.
"""

import re
import sys
from collections import Counter

import numpy as np
from build import rows_of
from check import NAMES, STEMS, trigrams
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from storyflower.evaluate.baseline import tfidf_logistic_regression

MAJORS = list(NAMES)
CURVE = (300, 600, 1200, 2400, 3600)


def text_of(row: dict) -> str:
    """What the classifier reads with turns: 2."""
    return " ".join(row["turns"][:2])


def whole(row: dict) -> str:
    return " ".join(row["turns"])


def classes(rows: list[dict]) -> np.ndarray:
    return np.array([MAJORS.index(row["major"]) for row in rows])


def tfidf(train: list[dict], test: list[dict]) -> float:
    """Accuracy of the baseline."""
    probability = tfidf_logistic_regression(
        [text_of(row) for row in train], classes(train), [text_of(row) for row in test], 6
    )
    return float((probability.argmax(axis=1) == classes(test)).mean())


def surface(row: dict, position: int) -> dict:
    """What is no word: topic, length, turns, place in the file, age, sex, punctuation, endings."""
    text = whole(row)
    marks = Counter(re.findall(r"[.,?!~…'\"]|ㅋㅋ|ㅎㅎ|ㅠㅠ|ㅜㅜ", text))
    endings = Counter(re.findall(r"([가-힣])(?=[^가-힣]*(?:$|[.?!…]))", text))
    return {
        f"topic={row['topic']}": 1,
        f"age={row['age']}": 1,
        f"sex={row['sex']}": 1,
        "length": len(text),
        "turns": len(row["turns"]),
        "position": position,
        **{f"mark={mark}": count for mark, count in marks.items()},
        **{f"ending={ending}": count for ending, count in endings.items()},
    }


def left_out(train: list[dict], key: str) -> tuple[list[float], list[float]]:
    """Accuracy on each value of a key when it is left out, and on random folds of its size."""
    rng = np.random.default_rng(0)
    strangers, random_folds = [], []
    for value in sorted({row[key] for row in train}):
        out = np.array([row[key] == value for row in train])
        for mask, result in ((out, strangers), (rng.permutation(out), random_folds)):
            kept = [row for row, gone in zip(train, mask, strict=True) if not gone]
            gone = [row for row, gone in zip(train, mask, strict=True) if gone]
            result.append(tfidf(kept, gone))
    return strangers, random_folds


def most_alike(rows: list[dict]) -> float:
    """The largest share of the shorter one's character trigrams that two rows have in common."""
    grams = [trigrams(whole(row)) for row in rows]
    number = {gram: column for column, gram in enumerate(sorted(set().union(*grams)))}
    columns = np.array([number[gram] for row in grams for gram in row])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in grams])])
    matrix = sparse.csr_matrix((np.ones(len(columns), np.int32), columns, offsets))
    shared = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    sizes = np.diff(offsets)
    return float((shared.data / np.minimum(sizes[shared.row], sizes[shared.col])).max())


def nearest_is_the_same_plot(
    train: list[dict], test: list[dict], analyzer: str, sizes: tuple[int, int]
) -> float:
    """How often the nearest Training row of a Validation row has its fine emotion, of its major."""
    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=sizes, sublinear_tf=True)
    learned = vectorizer.fit_transform([text_of(row) for row in train])
    similarity = (vectorizer.transform([text_of(row) for row in test]) @ learned.T).toarray()
    same = np.array([[a["major"] == b["major"] for b in train] for a in test])
    nearest = np.where(same, similarity, -1).argmax(axis=1)
    pairs = zip(test, nearest, strict=True)
    return float(np.mean([row["fine"] == train[index]["fine"] for row, index in pairs]))


def main() -> None:
    train, test = rows_of("Training"), rows_of("Validation")
    rows = train + test
    print(f"rows: {len(train)} and {len(test)}")
    named = np.mean([bool(re.search(NAMES[row["major"]], whole(row))) for row in rows])
    stems = np.mean([bool(re.search(STEMS[row["major"]], whole(row))) for row in rows])
    print(f"name of their own major: {named:.1%}; stem of a fine emotion of it: {stems:.1%}")
    print(f"most alike pair, character trigrams: {most_alike(rows):.0%}")
    both = {row["situation"] for row in train} & {row["situation"] for row in test}
    print(f"situations in both files: {len(both)}")
    vectors = [surface(row, index) for index, row in enumerate(train)]
    model = make_pipeline(DictVectorizer(), MaxAbsScaler(), LogisticRegression(max_iter=2000))
    scores = cross_val_score(model, vectors, classes(train), cv=5)
    print(f"without words, five folds: {scores.mean():.3f} (chance {1 / 6:.3f})")
    # By the first of these, Validation was rewritten; the others did not take part.
    for name, analyzer, sizes in (
        ("1 to 4 characters", "char_wb", (1, 4)),
        ("3 to 5 characters", "char", (3, 5)),
        ("words and pairs of them", "word", (1, 2)),
    ):
        same = nearest_is_the_same_plot(train, test, analyzer, sizes)
        print(f"nearest Training row has the same fine emotion, by {name}: {same:.1%} (chance 10%)")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(train))
    for count in CURVE:
        if count <= len(train):
            part = [train[index] for index in order[:count]]
            print(f"TF-IDF, {count} rows, on Validation: {tfidf(part, test):.3f}", flush=True)
    if "--quick" in sys.argv:
        return
    for key in ("writer", "topic"):
        strangers, folds = left_out(train, key)
        print(
            f"TF-IDF with a {key} left out: {np.mean(strangers):.3f} ({min(strangers):.3f} to "
            f"{max(strangers):.3f}); random folds {np.mean(folds):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
