"""The service as an ASGI app: what each path answers, and what holds for all of them.

In: HTTP requests.
Out: JSON, the page's files, metrics. Every error has the one form of messages.py. Nothing of a
request is ever logged but what kind of fault it met.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storyflower import __version__
from storyflower.common.errors import InputError
from storyflower.predict import MOSTLY, Answer, Classifier, Steps
from storyflower.serve import messages
from storyflower.serve.batching import Batches, where
from storyflower.serve.messages import Refused
from storyflower.serve.metrics import Metrics
from storyflower.serve.settings import Settings

log = getLogger(__name__)
PAGE = Path(__file__).parent / "page"
MAX_BODY = 1_000_000  # bytes
PARSED_AT_ONCE = 20_000  # bytes
# What anyone may ask for, token or not: the page asks for the token itself
OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/")
PATHS = (*OPEN, "/metrics", "/v1/model", "/v1/predict", "/v1/diary", "/v1/explain")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    classifier: Classifier, settings: Settings, stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """The whole service. Its lifespan ends the scoring thread.

    Once it is `stopping`, it refuses new requests. One of several workers does not: until the
    server closes its socket, another worker may be taking its place, and a client should not
    notice.
    """
    metrics = Metrics()
    batches = Batches(
        classifier.score,
        limit=settings.batch_limit,
        window=settings.window,
        max_requests=settings.queue,
        max_characters=10 * messages.MAX_CHARACTERS,
        metrics=metrics,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batches.close)

    app = FastAPI(
        title="StoryFlower",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: no_such_path, Refused: refused, Exception: failed},
    )
    add_answers(app, classifier, batches, settings.deadline)
    add_health(app, batches, stopping, metrics)
    add_pages(app)
    guarded = Guard(app, settings, stopping, metrics)
    if not settings.origins:
        return guarded
    return CORSMiddleware(  # outside: a browser's preflight has no token
        guarded,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )


def add_answers(app: FastAPI, classifier: Classifier, batches: Batches, seconds: float) -> None:
    """The paths that the classifier answers; a body, and again an answer, may take `seconds`."""
    errors = {"4XX": {"model": messages.Error}, "5XX": {"model": messages.Error}}

    def post(path: str, asked: type[BaseModel], answer: type[BaseModel]) -> Callable:
        """A route that reads its body itself: FastAPI reads any size, and its errors repeat it."""
        body = {"required": True, "content": {"application/json": {"schema": schema(asked)}}}
        return app.post(
            path,
            responses={200: {"model": answer}, **errors},
            openapi_extra={"requestBody": body},
        )

    async def answer(steps: Steps[Answer], size: int) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await batches.answer(steps, size)
        except TimeoutError:
            raise Refused("busy", f"the answer took more than {seconds:g} s") from None

    @post("/v1/predict", messages.Texts, messages.Predictions)
    async def predict(request: Request) -> Response:
        """The label of each text. A text over max_len token ids is cut there, and `cut` says so."""
        asked = await read(request, messages.Texts, seconds)
        steps = classifier.predict_steps(asked.texts, asked.unsure_below)
        predictions, scores = await answer(steps, sum(map(len, asked.texts)))
        rows = zip(predictions, scores.cut.tolist(), scores.unknown.tolist(), strict=True)
        return answer_of(
            {
                "predictions": [
                    {
                        "label": each.label,
                        "probabilities": each.probabilities,
                        "cut": cut,
                        "mostly_unknown": unknown >= MOSTLY,
                    }
                    for each, cut, unknown in rows
                ]
            }
        )

    @post("/v1/diary", messages.Text, messages.ReadDiary)
    async def diary(request: Request) -> Response:
        """A diary of several sentences: the label of the whole and of each piece."""
        asked = await read(request, messages.Text, seconds)
        steps = classifier.read_steps(asked.text, asked.unsure_below)
        return answer_of(asdict(await answer(steps, len(asked.text))))

    @post("/v1/explain", messages.Text, messages.ExplainedText)
    async def explain(request: Request) -> Response:
        """How much each word of a sentence moved the answer: it is read again without the word."""
        asked = await read(request, messages.Text, seconds)
        steps = classifier.explain_steps(asked.text, asked.unsure_below)
        try:
            return answer_of(asdict(await answer(steps, len(asked.text))))
        except InputError as error:
            raise Refused("too_long", str(error), "text") from None

    @app.get("/v1/model", responses={200: {"model": messages.ServedModel}, **errors})
    async def model() -> Response:
        """What is served."""
        return answer_of(
            {
                "labels": list(classifier.labels),
                "max_len": classifier.max_len,
                "temperature": classifier.temperature,
                "version": __version__,
            }
        )


def add_health(
    app: FastAPI, batches: Batches, stopping: Callable[[], bool], metrics: Metrics
) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """200 while the process can compute."""
        if not batches.alive:
            raise Refused("internal", "the scoring thread has ended")
        return answer_of({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 while new requests are taken."""
        if stopping():
            raise Refused("stopping", "the service is about to end")
        return answer_of({"status": "ready"})

    @app.get("/metrics")
    async def numbers() -> Response:
        """Numbers for Prometheus, summed over the workers."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    app.mount("/static", StaticFiles(directory=PAGE))


def schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def answer_of(content: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


async def refused(_: Request, error: Refused) -> Response:
    return answer_of(error.body, error.status, error.headers)


async def failed(request: Request, _: Exception) -> Response:
    """A fault of ours; Starlette raises it again, and Guard logs where it was."""
    return await refused(request, Refused("internal", "the service could not answer"))


async def no_such_path(request: Request, error: HTTPException) -> Response:
    """Starlette's own refusals: 404, 405 and those of the static files."""
    if error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "GET, HEAD")
        return await refused(
            request, Refused("method_not_allowed", f"use {methods}", headers={"Allow": methods})
        )
    return await refused(request, Refused("not_found", "no such path"))


async def read(request: Request, model: type[messages.Model], seconds: float) -> messages.Model:
    """The checked request. Raises Refused; of a body over MAX_BODY it reads no more than that."""
    try:
        async with asyncio.timeout(seconds):
            body = await body_of(request)
    except TimeoutError:
        raise Refused("timeout", f"the body did not arrive in {seconds:g} s") from None
    # A long body takes long to parse, and the others should not wait for it
    if len(body) > PARSED_AT_ONCE:
        return await asyncio.to_thread(messages.parse, body, model)
    return messages.parse(body, model)


async def body_of(request: Request) -> bytes:
    # The server has checked that it is a number
    if int(request.headers.get("content-length", "0")) <= MAX_BODY:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                break
        else:
            return bytes(body)
    raise Refused("too_large", f"the body has more than {MAX_BODY} bytes")


class Guard:
    """What holds for every path: the token, the headers, the numbers, the faults."""

    def __init__(
        self, app: ASGIApp, settings: Settings, stopping: Callable[[], bool], metrics: Metrics
    ):
        self._app, self._stopping, self._metrics = app, stopping, metrics
        self._token = settings.token and settings.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves the body out
        path, started, status = known(scope["path"]), time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                kept = path in ("/", "/docs", "/static/") and status < 400
                headers["Cache-Control"] = "no-cache" if kept else "no-store"
            await send(message)

        try:
            self._check(scope, path)
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499  # nobody is there to be answered
        except Exception as error:
            if not isinstance(error, Refused):
                log.error("a request failed: %s", where(error))
                error = Refused("internal", "the service could not answer")
            if not status:
                response = answer_of(error.body, error.status, error.headers)
                await response(scope, receive, send_with_headers)
        finally:
            self._metrics.request(path, status, time.perf_counter() - started)

    def _check(self, scope: Scope, path: str) -> None:
        if path in OPEN or path == "other":
            return
        if self._token:
            scheme, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
            right = hmac.compare_digest(sent.encode("latin-1"), self._token)
            if scheme.lower() != "bearer" or not right:
                challenge = {"WWW-Authenticate": "Bearer"}
                raise Refused("unauthorized", "send Authorization: Bearer …", headers=challenge)
        if self._stopping():
            raise Refused(
                "stopping", "the service is about to end", headers={"Connection": "close"}
            )


def known(path: str) -> str:
    """The path as a metric's label: one of PATHS, or other."""
    if path.startswith("/static/"):
        return "/static/"
    return path if path in PATHS else "other"
