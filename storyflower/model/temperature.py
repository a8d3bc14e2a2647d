"""The temperature: one number that makes a classifier's probabilities mean what they say.

In: logits on the dev part, which no step was trained on, and the actual classes.
Out: the temperature by which logits are divided before the softmax (Guo et al., 2017). It changes
no label: the order of the classes stays the same.
Not supported: a temperature for each class. It would need more rows than most dev parts have.
"""

import numpy as np

LEAST, MOST = 0.1, 10.0  # a dev part without an error would have 0, one without a hit infinity
STEPS = 60  # halvings of that range, far below DIGITS
DIGITS = 4  # kept, so that the last bits of a machine's arithmetic do not change the number


def fit_temperature(logits: np.ndarray, actual: np.ndarray) -> float:
    """The temperature with the least cross-entropy on logits (rows, classes), classes (rows,).

    Between LEAST and MOST; of several equally good ones the largest. The cross-entropy is convex in
    1 / temperature, so bisection finds the zero of its slope.
    """
    low, high = 1 / MOST, 1 / LEAST
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        if slope(logits, actual, middle) < 0:
            low = middle
        else:
            high = middle
    return round(1 / low, DIGITS)


def slope(logits: np.ndarray, actual: np.ndarray, inverse: float) -> float:
    """The derivative of the mean cross-entropy by 1 / temperature, at `inverse`."""
    logits = logits.astype(np.float64)
    scaled = logits * inverse
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
    return float((expected - logits[np.arange(len(actual)), actual]).mean())
