"""The dev part: rows of Training that are held back, to choose the best epoch.

In: the token arrays of Training and a share.
Out: which rows are held back: that share of each class's distinct texts. A hash of the text chooses
them, so the order of the file does not matter, and a few more rows change little. Equal texts
(after tokenization) are on the same side.
Not supported: near-duplicates; two texts that share most of their words may be on different sides.
"""

import sys

import numpy as np

from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays

MOST_IDS = 1 << 20  # the largest vocabulary
BLOCK = 65_536  # rows hashed at a time, to limit memory


def held_back(tokens: TokenArrays, share: float, seed: int) -> np.ndarray:
    """bool (rows,): the dev part. Raises InputError if it, or the rest, would be empty.

    Prints on standard error how many classes have too few texts to be in the dev part.
    """
    hashes = hash_texts(tokens, seed)
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    labels = np.asarray(tokens.labels)[first]  # a text with two classes counts for its first one
    chosen = np.zeros(len(distinct), dtype=bool)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)  # sorted by hash, which is effectively random
        chosen[mine[: round(share * len(mine))]] = True
    dev = chosen[inverse]
    if absent := set(labels.tolist()) - set(labels[chosen].tolist()):
        print(
            f"note: {len(absent)} classes have too few texts for a part of {share:g}: the dev part "
            "has none of them",
            file=sys.stderr,
        )
    if not dev.any() or dev.all():
        raise InputError(
            f"dev_share {share:g} of {len(tokens)} rows leaves a side empty; change dev_share"
        )
    return dev


def hash_texts(tokens: TokenArrays, seed: int) -> np.ndarray:
    """uint64 (rows,): equal for equal ids; else equal with a chance of about 2**-63 per pair."""
    rng = np.random.default_rng(seed)
    of_id = rng.integers(2**64, size=MOST_IDS, dtype=np.uint64)
    of_position = rng.integers(2**64, size=512, dtype=np.uint64) | np.uint64(1)
    result = np.empty(len(tokens), dtype=np.uint64)
    for start in range(0, len(tokens), BLOCK):
        offsets = np.asarray(tokens.offsets[start : start + BLOCK + 1])
        lengths = np.diff(offsets)
        ids = np.asarray(tokens.ids[offsets[0] : offsets[-1]]).astype(np.int64)
        position = np.arange(len(ids)) - np.repeat(offsets[:-1] - offsets[0], lengths)
        terms = of_id[ids] * of_position[position]  # modulo 2**64
        result[start : start + len(lengths)] = np.add.reduceat(terms, offsets[:-1] - offsets[0])
    return result


def take(tokens: TokenArrays, chosen: np.ndarray) -> TokenArrays:
    """The rows for which the bool mask `chosen`, (rows,), is true."""
    ids = np.asarray(tokens.ids)[np.repeat(chosen, tokens.lengths)]
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths[chosen])])
    return TokenArrays(ids, offsets, np.asarray(tokens.labels)[chosen])
