"""Requests that wait together are computed together.

In: answers in the making (predict.Steps), from the event loop.
Out: the answers. One thread does all that a classifier does, tokenizing included: it asks each
answer which texts it needs, scores texts of all waiting answers in one call, and hands the scores
out. A call takes the same number of texts from each, so that a long diary does not hold up a
sentence.
Not supported: several threads on one classifier; start more workers.
"""

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from storyflower.common.errors import InputError
from storyflower.predict import Scores, Steps, finish, split
from storyflower.serve.messages import Refused
from storyflower.serve.metrics import Metrics

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
GATHERED = 5  # windows, at most, from the first request to the computation


@dataclass(eq=False)
class Waiting:
    """One answer in the making."""

    steps: Steps
    size: int  # characters
    future: asyncio.Future
    texts: list[str] = field(default_factory=list)  # that it needs scored
    parts: list[Scores] = field(default_factory=list)  # of the first of them

    @property
    def scored(self) -> int:
        return sum(len(part.cut) for part in self.parts)


class Batches:
    """Scores the texts of waiting requests together, in a thread of its own."""

    def __init__(
        self,
        score: Callable[[list[str]], Scores],
        *,
        limit: int,
        window: float,
        max_requests: int,
        max_characters: int,
        metrics: Metrics,
    ):
        """Start the thread.

        `limit`: texts in one call. `window`: seconds that a request waits for another. Above
        `max_requests` waiting requests, or `max_characters` in them, new ones are refused. A
        request always fits if none waits.
        """
        self._score, self._metrics = score, metrics
        self._limit, self._window = limit, window
        self._max_requests, self._max_characters = max_requests, max_characters
        self._requests = self._characters = 0  # accepted and not answered; event loop only
        self._new: list[Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def answer(self, steps: Steps[Answer], size: int) -> Answer:
        """What the steps return; `size` is the number of characters in the request.

        Raises Refused("busy") when too much waits, and what the steps raise.
        """
        if self._requests and (
            self._requests >= self._max_requests or self._characters + size > self._max_characters
        ):
            raise Refused("busy", "too many requests wait")
        waiting = Waiting(steps, size, asyncio.get_running_loop().create_future())
        self._requests += 1
        self._characters += size
        self._metrics.waiting(self._requests)
        try:
            with self._changed:
                self._new.append(waiting)
                self._changed.notify()
            return await waiting.future
        finally:  # also when the caller's time is up: then the thread drops it
            self._requests -= 1
            self._characters -= size
            self._metrics.waiting(self._requests)

    def close(self) -> None:
        """End the thread once what waits is answered. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # From here on in the thread

    def _work(self) -> None:
        waiting: list[Waiting] = []
        while True:
            new = self._take_new(wait=not waiting)
            if not new and not waiting:
                return
            answered = []
            for each in new:
                try:
                    each.texts = next(each.steps)
                    waiting.append(each)
                except Exception as error:
                    answered.append((each, public(error)))
            waiting = [each for each in waiting if not each.future.done()]
            if waiting:
                answered += self._turn(waiting)
                over = {id(each) for each, _ in answered}
                waiting = [each for each in waiting if id(each) not in over]
            deliver(answered)

    def _take_new(self, wait: bool) -> list[Waiting]:
        """What has come in since; with `wait`, at least one, unless closed, and what follows it.

        Clients that have just been answered ask again one after the other, so the window begins
        anew with each request, GATHERED times at most.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._new or self._closed)
                until = time.monotonic() + GATHERED * self._window
                while len(self._new) < self._limit and not self._closed:
                    seen, left = len(self._new), min(self._window, until - time.monotonic())
                    if left <= 0:
                        break
                    self._changed.wait(left)
                    if len(self._new) == seen:
                        break
            new, self._new = self._new, []
            return new

    def _turn(self, waiting: list[Waiting]) -> list[tuple[Waiting, Any]]:
        """Score one batch; return the answers that are complete. Reorders `waiting`."""
        taken = share([len(each.texts) - each.scored for each in waiting], self._limit)
        texts = [
            text
            for each, count in zip(waiting, taken, strict=True)
            for text in each.texts[each.scored : each.scored + count]
        ]
        started = time.perf_counter()
        try:
            scores = self._score(texts)
        except Exception as error:
            failure = public(error)
            return [(each, failure) for each, count in zip(waiting, taken, strict=True) if count]
        self._metrics.batch(len(texts), time.perf_counter() - started)
        answered = []
        for each, count, part in zip(waiting, taken, split(scores, taken), strict=True):
            if not count:
                continue
            each.parts.append(part)
            if each.scored == len(each.texts):
                answered.append((each, end(each)))
        # Those that got nothing come first next time, or long diaries could hold up a sentence.
        turns = dict(zip(map(id, waiting), taken, strict=True))
        waiting.sort(key=lambda each: turns[id(each)] > 0)
        return answered


def share(wanted: list[int], limit: int) -> list[int]:
    """How many texts of each request go into a batch: as evenly as they want, the first first."""
    taken = [0] * len(wanted)
    left = limit
    while left and sum(taken) < sum(wanted):
        open_ = [i for i, want in enumerate(wanted) if taken[i] < want]
        each = max(left // len(open_), 1)
        for i in open_:
            more = min(each, wanted[i] - taken[i], left)
            taken[i] += more
            left -= more
    return taken


def end(each: Waiting) -> Any:
    """The answer of a request whose texts are scored, or an exception."""
    try:
        return finish(each.steps, joined(each.parts))
    except Exception as error:
        return public(error)


def joined(parts: list[Scores]) -> Scores:
    return Scores(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.cut for part in parts]),
        np.concatenate([part.unknown for part in parts]),
    )


def public(error: Exception) -> Exception:
    """An exception that may leave the thread. Its message may hold text, so it is not logged."""
    if isinstance(error, (InputError, Refused)):
        return error
    log.error("scoring failed: %s", where(error))
    return Refused("internal", "the service could not compute this")


def where(error: BaseException) -> str:
    """The type of an exception and the lines that it passed, without its message."""
    lines = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return " < ".join([type(error).__name__, *reversed(lines)])


def deliver(answered: list[tuple[Waiting, Any]]) -> None:
    """Give the answers to the event loop, all in one call."""
    if answered:
        loop = answered[0][0].future.get_loop()
        loop.call_soon_threadsafe(settle, answered)


def settle(answered: list[tuple[Waiting, Any]]) -> None:
    for each, answer in answered:
        if each.future.done():  # its time was up
            continue
        if isinstance(answer, Exception):
            each.future.set_exception(answer)
        else:
            each.future.set_result(answer)
