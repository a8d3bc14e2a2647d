"""Which rows become Validation where no file is: stratified by class, no text on both sides.

In: a hash of each row's text and the number of its class, in the order of the classes' names. No
text is needed.
Out: a mask of the rows. It depends on the texts, the classes and the seed, not on the order of the
rows and files, so most texts stay on their side when rows are added.
"""

import numpy as np


def draw(hashes: np.ndarray, classes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose about `share` of the rows of each class; returns bool (rows,), true for Validation.

    `hashes` is uint64 (rows,), `classes` uint16 (rows,). Equal hashes stay on one side. A class of
    two or more texts has one on each side, unless texts with several classes prevent it. Training
    has every class. If no class has two texts, no row is chosen.
    """
    texts, text_of, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    own = np.full(len(texts), 2**16 - 1, dtype=np.uint16)
    np.minimum.at(own, text_of, classes)  # (texts,) of several classes, the first one's
    order = np.lexsort((mixed(texts ^ mixed(np.array([seed], np.uint64))), own))
    chosen = np.zeros(len(texts), dtype=bool)
    for members in np.split(order, np.flatnonzero(np.diff(own[order])) + 1):
        chosen[members] = taken(sizes[members], share)
    if (own[text_of] != classes).any():
        repair(chosen, text_of, classes, sizes)
    return chosen[text_of]


def taken(sizes: np.ndarray, share: float) -> np.ndarray:
    """Which texts of a class to take, bool (texts,): the first ones that fit into its share.

    `sizes` is the number of rows of each. Of two or more, one at least is taken and one left.
    """
    take = np.zeros(len(sizes), dtype=bool)
    if len(sizes) < 2:
        return take
    room = max(round(share * int(sizes.sum())), 1)
    left = np.arange(len(sizes))
    while len(left := left[sizes[left] <= room]):
        fitting = left[np.cumsum(sizes[left]) <= room]
        take[fitting] = True
        room -= int(sizes[fitting].sum())
        left = left[len(fitting) :]
    if not take.any():
        take[np.argmin(sizes)] = True
    if take.all():
        take[-1] = False
    return take


def repair(chosen: np.ndarray, text_of: np.ndarray, classes: np.ndarray, sizes: np.ndarray) -> None:
    """Move texts, in place, so that Training has every class, and Validation where it can be.

    Only texts that stand under several classes make this necessary.
    """
    count = int(classes.max()) + 1
    pairs = np.unique(text_of.astype(np.int64) * count + classes)
    text, label = np.divmod(pairs, count)  # each text with each of its classes

    def on(side: bool) -> np.ndarray:
        """The number of texts of each class on one side, (classes,)."""
        return np.bincount(label[chosen[text] == side], minlength=count)

    for number in np.flatnonzero(on(False) == 0):
        if not on(False)[number] and len(mine := text[label == number]):
            chosen[mine[np.argmin(sizes[mine])]] = False
    for number in np.flatnonzero(on(True) == 0):
        if on(True)[number]:
            continue
        needed = np.zeros(len(chosen), dtype=bool)
        needed[text[on(False)[label] < 2]] = True  # without it, Training would lack a class
        mine = text[label == number]
        mine = mine[~chosen[mine] & ~needed[mine]]
        if len(mine):
            chosen[mine[np.argmin(sizes[mine])]] = True


def mixed(numbers: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, which scatters uint64 numbers; wraps around at 64 bits."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
