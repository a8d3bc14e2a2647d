"""Embeddings from counts: where a masked language model starts, so that it skips its plateau.

In: token ids of texts.
Out: a table whose rows are near where tokens stand in the same contexts: positive pointwise mutual
information of tokens at most four apart, its truncated SVD (Levy & Goldberg 2014; context counts
to the power 0.75 as in Levy, Goldberg & Dagan 2015). From random embeddings a model of this size
spends its first thousands of steps on the frequencies of single tokens.
"""

import math

import numpy as np
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from storyflower.interim.tokens import TokenArrays

WINDOW = 4  # tokens to each side; at a distance of d a pair counts 1 / d
UNIT = math.lcm(*range(1, WINDOW + 1))  # in parts of 1 / UNIT all counts are whole: sums are exact
BLOCK = 65_536  # texts counted at a time, which bounds the memory
SMOOTHING = 0.75  # power of the contexts' counts: rare contexts say too much without it
ROW_NORM = 0.04  # of a row, divided by the root of its length: BERT's embeddings begin at 0.02


def embeddings_from_counts(
    tokens: TokenArrays, vocabulary: int, size: int, *, seed: int
) -> np.ndarray:
    """(vocabulary, size) float32; a token that no text has gets a random row."""
    counts = count_pairs(tokens, vocabulary).tocoo()
    token = np.asarray(counts.sum(axis=1)).ravel()
    context = token**SMOOTHING
    information = np.log(counts.data * context.sum() / (token[counts.row] * context[counts.col]))
    positive = information > 0
    matrix = scipy.sparse.coo_matrix(
        (information[positive], (counts.row[positive], counts.col[positive])),
        shape=(vocabulary, vocabulary),
    ).tocsr()
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 0.02, (vocabulary, size))
    rank = min(size, vocabulary - 1)
    # Not scipy's svds: ARPACK keeps random numbers of its own from one call to the next.
    left, strength, _ = randomized_svd(matrix, rank, n_iter=7, random_state=seed)
    vectors = left * np.sqrt(strength)
    norms = np.linalg.norm(vectors, axis=1)
    seen = norms > 1e-6
    table[seen] = 0
    table[seen, :rank] = (vectors[seen].T / norms[seen]).T * ROW_NORM * np.sqrt(size)
    return table.astype(np.float32)


def count_pairs(tokens: TokenArrays, vocabulary: int) -> scipy.sparse.csr_matrix:
    """(vocabulary, vocabulary): how often two tokens stand near each other, in either order."""
    counts = scipy.sparse.csr_matrix((vocabulary, vocabulary), dtype=np.float64)
    for start in range(0, len(tokens), BLOCK):
        offsets = np.asarray(tokens.offsets[start : start + BLOCK + 1])
        ids = np.asarray(tokens.ids[offsets[0] : offsets[-1]]).astype(np.int32)
        text = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
        for distance in range(1, WINDOW + 1):
            same = text[distance:] == text[:-distance]
            left, right = ids[:-distance][same], ids[distance:][same]
            weights = np.full(len(left), UNIT // distance, dtype=np.float64)
            counts += scipy.sparse.coo_matrix(
                (weights, (left, right)), shape=(vocabulary, vocabulary)
            ).tocsr()
    return (counts + counts.T) / UNIT
