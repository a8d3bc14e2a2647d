"""What the service answers: predictions, diaries, explanations, its pages, and every error."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any
from unittest.mock import Mock

import pytest

from storyflower import UNSURE, Classifier, __version__
from storyflower.serve import messages
from storyflower.serve.app import HEADERS, MAX_BODY, PAGE, make_app
from storyflower.serve.settings import Settings
from tests.serve.conftest import Answer, Service, running
from tests.support import ROOT, WORDS

SENTENCES = ["심장이 뛰어", "합격했어 웃음이 나", "따지고 싶어"]
DIARY = "오늘 합격했어! 그런데 새치기를 당했어.\n\n잠이 안 와 " + "심장이 뛰어 " * 12
SECRET = "비밀일기"


def close(shares: dict[str, float]) -> dict[str, float]:
    return pytest.approx(shares, abs=1e-5)


def test_predict(service: Service, loaded: Classifier) -> None:
    answer = service.call("/v1/predict", {"texts": [*SENTENCES, DIARY, "뷁 뒓 쀍"]})
    assert answer.status == 200
    rows = answer.json["predictions"]
    for row, found in zip(rows, loaded.predict([*SENTENCES, DIARY, "뷁 뒓 쀍"]), strict=True):
        assert row["label"] == found.label
        assert row["probabilities"] == close(found.probabilities)
        assert list(row["probabilities"].values()) == sorted(row["probabilities"].values())[::-1]
    assert [row["cut"] for row in rows] == [False, False, False, True, False]
    assert [row["mostly_unknown"] for row in rows] == [False, False, False, False, True]


def test_a_diary(service: Service, loaded: Classifier) -> None:
    answer = service.call("/v1/diary", {"text": DIARY})
    found = json.loads(json.dumps(asdict(loaded.read(DIARY))))
    assert answer.json["label"] == found["label"]
    assert answer.json["probabilities"] == close(found["probabilities"])
    assert len(answer.json["pieces"]) == len(found["pieces"]) > 3
    for piece, other in zip(answer.json["pieces"], found["pieces"], strict=True):
        assert piece["text"] == DIARY[piece["start"] : piece["end"]] == other["text"]
        assert piece["label"] == other["label"]
        assert piece["probabilities"] == close(other["probabilities"])


def test_why(service: Service, loaded: Classifier) -> None:
    text = "합격했어 웃음이 나"
    answer = service.call("/v1/explain", {"text": text})
    found = loaded.explain(text)
    assert answer.json["label"] == found.label
    for word, other in zip(answer.json["words"], found.words, strict=True):
        assert word["text"] == text[word["start"] : word["end"]] == other.text
        assert word["change"] == pytest.approx(other.change, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/predict", {"texts": ["합격했어"]}), ("/v1/diary", {"text": "합격했어"})],
)
def test_an_answer_that_is_not_sure(service: Service, path: str, body: dict) -> None:
    answer = service.call(path, body | {"unsure_below": 1}).json
    row = answer["predictions"][0] if "predictions" in answer else answer
    assert row["label"] == UNSURE
    assert set(row["probabilities"]) == set(WORDS)


def test_what_is_served(service: Service, loaded: Classifier) -> None:
    assert service.call("/v1/model").json == {
        "labels": list(loaded.labels),
        "max_len": loaded.max_len,
        "temperature": None,
        "version": __version__,
    }
    assert service.call("/healthz").json == {"status": "ok"}
    assert service.call("/readyz").json == {"status": "ready"}


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/static/page.js", "/openapi.json", "/healthz", "/readyz", "/v1/model"]
)
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    got, head = service.call(path), service.call(path, method="HEAD")
    assert (got.status, head.status, head.body) == (200, 200, b"")
    same = ("Content-Length", "Content-Type", "Cache-Control", "X-Content-Type-Options")
    assert [head.headers[name] for name in same] == [got.headers[name] for name in same]


def test_pages_load_nothing_from_elsewhere(service: Service) -> None:
    for path in ("/", "/docs", *(f"/static/{file.name}" for file in PAGE.iterdir())):
        answer = service.call(path)
        assert answer.status == 200, path
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        # An address of XML's is a name; nothing is loaded from it
        addresses = re.findall(rb"""["'(](https?:)?//(?!www\.w3\.org/)""", answer.body)
        assert not addresses, path


def test_openapi_describes_every_path(service: Service) -> None:
    document = service.call("/openapi.json").json
    asked = ["/v1/predict", "/v1/diary", "/v1/explain"]
    assert set(document["paths"]) == {*asked, "/v1/model", "/healthz", "/readyz", "/metrics"}
    for path in asked:
        body = document["paths"][path]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"]["properties"]
    assert service.call("/docs").headers["Content-Type"].startswith("text/html")
    # What the answers are said to have is what they have
    for path, text in (("predict", {"texts": SENTENCES}), ("diary", {"text": DIARY})):
        told = document["paths"][f"/v1/{path}"]["post"]["responses"]["200"]["content"]
        name = told["application/json"]["schema"]["$ref"].rpartition("/")[2]
        fields = set(document["components"]["schemas"][name]["properties"])
        assert fields == set(service.call(f"/v1/{path}", text).json)


LONG = "합격했어 " * (messages.MAX_CHARACTERS // 5 + 1)
BAD = [
    # (path, body, status, code, field)
    ("/v1/predict", b"", 422, "invalid_json", None),
    ("/v1/predict", f'{{"texts": ["{SECRET}"'.encode(), 422, "invalid_json", None),
    ("/v1/predict", SECRET.encode("cp949"), 422, "invalid_json", None),
    ("/v1/predict", f'{{"texts": ["{SECRET}"]}}'.encode("utf-16"), 422, "invalid_json", None),
    ("/v1/predict", f'["{SECRET}"]'.encode(), 422, "invalid_field", None),
    ("/v1/predict", b"[" * 100_000, 422, "invalid_json", None),
    ("/v1/predict", b'{"a":' * 100_000, 422, "invalid_json", None),
    ("/v1/predict", b'{"texts": ["a"], "texts": ["b"]}', 422, "invalid_json", None),
    ("/v1/predict", b'{"texts": ["a"], "unsure_below": NaN}', 422, "invalid_json", None),
    ("/v1/predict", b'{"texts": ["a"], "unsure_below": -Infinity}', 422, "invalid_json", None),
    (
        "/v1/predict",
        b'{"texts": ["a"], "unsure_below": 1e999}',
        422,
        "invalid_field",
        "unsure_below",
    ),
    ("/v1/predict", b'{"texts": 1%s}' % (b"0" * 5000), 422, "invalid_json", None),
    ("/v1/predict", {}, 422, "invalid_field", "texts"),
    ("/v1/predict", {"texts": SECRET}, 422, "invalid_field", "texts"),
    ("/v1/predict", {"texts": None}, 422, "invalid_field", "texts"),
    ("/v1/predict", {"texts": []}, 422, "invalid_field", "texts"),
    ("/v1/predict", {"texts": ["가", 7]}, 422, "invalid_field", "texts.1"),
    ("/v1/predict", {"texts": ["가", {SECRET: SECRET}]}, 422, "invalid_field", "texts.1"),
    ("/v1/predict", {"texts": [SECRET], SECRET: 1}, 422, "invalid_field", None),
    ("/v1/predict", {"texts": ["가"] * 257}, 422, "too_long", "texts"),
    ("/v1/predict", {"texts": ["가" * 60_000] * 2}, 422, "too_long", "texts"),
    ("/v1/predict", b'{"texts": ["\\ud800"]}', 422, "invalid_field", "texts.0"),
    ("/v1/predict", {"texts": ["가"], "unsure_below": "1"}, 422, "invalid_field", "unsure_below"),
    ("/v1/predict", {"texts": ["가"], "unsure_below": True}, 422, "invalid_field", "unsure_below"),
    ("/v1/predict", {"texts": ["가"], "unsure_below": 1.5}, 422, "invalid_field", "unsure_below"),
    ("/v1/predict", {"texts": ["가"], "unsure_below": -1}, 422, "invalid_field", "unsure_below"),
    ("/v1/diary", {"texts": [SECRET]}, 422, "invalid_field", "text"),
    ("/v1/diary", {"text": ""}, 422, "no_text", "text"),
    ("/v1/diary", {"text": " \n\u3164"}, 422, "no_text", "text"),
    ("/v1/diary", {"text": LONG}, 422, "too_long", "text"),
    ("/v1/explain", {"text": " "}, 422, "no_text", "text"),
    ("/v1/explain", {"text": f"{SECRET} " * 20}, 422, "too_long", "text"),
    ("/v1/unknown", {"text": SECRET}, 404, "not_found", None),
    (f"/{SECRET.encode().hex()}", None, 404, "not_found", None),
    ("/static/%2e%2e/app.py", None, 404, "not_found", None),
    ("/static/", None, 404, "not_found", None),
    ("/v1/predict", None, 405, "method_not_allowed", None),
    ("/static/index.html", b"x", 405, "method_not_allowed", None),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "field"), BAD)
def test_every_error_has_one_form_and_repeats_nothing(
    service: Service, path: str, body: Any, status: int, code: str, field: str | None
) -> None:
    answer = service.call(path, body)
    assert answer.error == (status, code, field)
    assert SECRET not in answer.body.decode() and "\\u" not in answer.body.decode()
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"
    assert messages.CODES[code][0] == status


def test_a_known_path_with_another_method_names_its_own(service: Service) -> None:
    assert service.call("/v1/predict").headers["Allow"] == "POST"


def test_20000_characters_are_read(service: Service) -> None:
    text = "오늘은 심장이 뛰어. " * 1600
    pieces = service.call("/v1/diary", {"text": text}).json["pieces"]
    assert len(pieces) == 1600 and pieces[-1]["end"] == len(text) - 1


def chunks(size: int) -> Iterator[bytes]:
    yield b'{"texts": ["'
    for _ in range(size // 1000):
        yield b"a" * 1000
    yield b'"]}'


def test_a_body_over_one_megabyte(service: Service) -> None:
    """With a Content-Length and, in chunks, without one."""
    for body in (b"a" * (MAX_BODY + 1), chunks(MAX_BODY)):
        assert service.call("/v1/predict", body).error == (413, "too_large", None)
    assert service.call("/v1/predict", chunks(50_000)).status == 200
    lies = service.call("/v1/predict", b"{", Content_Length="2000000")
    assert lies.error == (413, "too_large", None)


def test_a_body_that_does_not_come(start: Callable[..., Service]) -> None:
    service = start(deadline=0.1)
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        head, _, body = connection.recv(10_000).partition(b"\r\n\r\n")
        body = body or connection.recv(10_000)
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "timeout"


# Many requests


def together(service: Service, bodies: list[Any], path: str = "/v1/predict") -> list[Answer]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: service.call(path, body), bodies))


class Counting:
    """A classifier that notes how many texts each scoring call gets, and can be slow or broken."""

    def __init__(
        self, classifier: Classifier, seconds: float = 0.0, fault: Exception | None = None
    ):
        self._classifier, self._seconds, self._fault = classifier, seconds, fault
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def score(self, texts: list[str]) -> Any:
        self.calls.append(len(texts))
        time.sleep(self._seconds)
        if self._fault:
            raise self._fault
        return self._classifier.score(texts)


def test_what_waits_together_is_computed_together(
    start: Callable[..., Service], loaded: Classifier
) -> None:
    counting = Counting(loaded)
    service = start(counting, window=0.5, batch_limit=100)
    alone = loaded.predict(SENTENCES)
    bodies = [{"texts": [text]} for text in SENTENCES * 4]
    for answer, found in zip(together(service, bodies), alone * 4, strict=True):
        (row,) = answer.json["predictions"]
        assert row["label"] == found.label
        assert row["probabilities"] == close(found.probabilities)
    assert sum(counting.calls) == 12 and max(counting.calls) > 4


def test_predictions_diaries_and_explanations_share_a_call(
    start: Callable[..., Service], loaded: Classifier
) -> None:
    counting = Counting(loaded)
    service = start(counting, window=1.0, batch_limit=1000)
    asked = [("predict", {"texts": SENTENCES}), ("diary", {"text": DIARY})]
    asked.append(("explain", {"text": SENTENCES[1]}))
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda one: service.call(f"/v1/{one[0]}", one[1]), asked))
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert len(counting.calls) == 1
    assert answers[1].json["label"] == loaded.read(DIARY).label


def test_a_batch_has_a_limit_and_a_long_request_does_not_hold_up_a_short_one(
    start: Callable[..., Service], loaded: Classifier
) -> None:
    counting = Counting(loaded, seconds=0.02)
    service = start(counting, batch_limit=4, window=0)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(service.call, "/v1/predict", {"texts": SENTENCES * 40})
        while not counting.calls:
            time.sleep(0.005)
        assert service.call("/v1/predict", {"texts": SENTENCES[:1]}).status == 200
        assert not long.done()
        rows = long.result().json["predictions"]
    assert [row["label"] for row in rows] == [row.label for row in loaded.predict(SENTENCES)] * 40
    assert max(counting.calls) == 4


def test_many_long_requests_do_not_hold_up_a_short_one(
    start: Callable[..., Service], loaded: Classifier
) -> None:
    counting = Counting(loaded, seconds=0.02)
    service = start(counting, batch_limit=2, window=0)
    with ThreadPoolExecutor(3) as pool:
        long = [
            pool.submit(service.call, "/v1/predict", {"texts": SENTENCES * 12}) for _ in range(3)
        ]
        while len(counting.calls) < 5:
            time.sleep(0.005)
        assert service.call("/v1/predict", {"texts": SENTENCES[:1]}).status == 200
        assert not any(each.done() for each in long)


def test_a_full_queue(start: Callable[..., Service]) -> None:
    service = start(queue=2, window=0.5)
    answers = together(service, [{"texts": ["합격했어"]}] * 5)
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503]
    for answer in answers:
        if answer.status == 503:
            assert answer.error == (503, "busy", None)
            assert int(answer.headers["Retry-After"]) >= 1
    assert service.call("/v1/predict", {"texts": ["합격했어"]}).status == 200


def test_an_answer_that_takes_too_long(start: Callable[..., Service], loaded: Classifier) -> None:
    service = start(Counting(loaded, seconds=0.5), deadline=0.1)
    answer = service.call("/v1/predict", {"texts": ["합격했어"]})
    assert answer.error == (503, "busy", None)
    assert answer.headers["Retry-After"]


def test_a_fault_is_answered_and_logged_without_text(
    start: Callable[..., Service], loaded: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    service = start(Counting(loaded, fault=ValueError(SECRET)))
    for path, body in (("predict", {"texts": [SECRET]}), ("diary", {"text": SECRET})):
        answer = service.call(f"/v1/{path}", body)
        assert answer.error == (500, "internal", None)
        assert SECRET not in answer.body.decode()
    assert "ValueError" in caplog.text and "test_answers.py" in caplog.text
    assert SECRET not in caplog.text
    assert service.call("/healthz").status == 200  # one bad batch ends nothing


def test_numbers_that_are_gone(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start()
    monkeypatch.setattr("storyflower.serve.metrics.generate_latest", Mock(side_effect=OSError))
    assert service.call("/metrics").error == (500, "internal", None)
    assert service.call("/v1/predict", {"texts": ["합격했어"]}).status == 200


def test_what_comes_after_the_signal_to_stop(loaded: Classifier) -> None:
    """The server looks for the signal ten times a second; until then requests still arrive."""
    settings, stopping = Settings(), threading.Event()
    with running(make_app(loaded, settings, stopping.is_set), settings) as service:
        stopping.set()
        answer = service.call("/v1/predict", {"texts": ["합격했어"]})
        assert answer.error == (503, "stopping", None)
        assert answer.headers["Connection"] == "close" and answer.headers["Retry-After"]
        assert service.call("/readyz").error == (503, "stopping", None)
        assert service.call("/healthz").status == 200


# Who may ask


def test_a_token(start: Callable[..., Service]) -> None:
    service = start(token="s3cret-word")
    body = {"texts": ["합격했어"]}
    for sent in ({}, {"Authorization": "Bearer s3cret-worD"}, {"Authorization": "s3cret-word"}):
        for path in ("/v1/predict", "/v1/diary", "/v1/explain"):
            answer = service.call(path, body, **sent)
            assert answer.error == (401, "unauthorized", None)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/v1/model", "/metrics"):
            assert service.call(path, **sent).status == 401
    right = {"Authorization": "Bearer s3cret-word"}
    assert service.call("/v1/predict", body, **right).status == 200
    assert service.call("/metrics", **right).status == 200
    assert service.call("/metrics", Authorization="bearer s3cret-word").status == 200
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/docs.js"):
        assert service.call(path).status == 200


ORIGIN = "https://example.com"


def test_other_web_sites(start: Callable[..., Service], service: Service) -> None:
    asking = {"Origin": ORIGIN, "Access_Control_Request_Method": "POST"}
    assert service.call("/v1/predict", method="OPTIONS", **asking).status == 405
    answer = service.call("/v1/model", Origin=ORIGIN)
    assert "Access-Control-Allow-Origin" not in answer.headers

    allowed = start(origins=(ORIGIN,), token="s3cret-word")
    answer = allowed.call("/v1/predict", method="OPTIONS", **asking)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert allowed.call("/v1/model", Origin=ORIGIN).status == 401
    asking["Origin"] = "https://example.org"
    answer = allowed.call("/v1/predict", method="OPTIONS", **asking)
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_numbers_name_paths_that_exist(start: Callable[..., Service]) -> None:
    service = start()
    service.call("/v1/predict", {"texts": SENTENCES})
    service.call(f"/v1/{SECRET.encode().hex()}")
    text = service.call("/metrics").body.decode()
    assert 'storyflower_requests_total{path="/v1/predict",status="200"} 1.0' in text
    assert 'storyflower_requests_total{path="other",status="404"} 1.0' in text
    assert "storyflower_batch_texts_sum 3.0" in text
    assert "storyflower_waiting_requests 0.0" in text
    assert SECRET.encode().hex() not in text


def test_the_documentation_lists_every_code() -> None:
    lines = (ROOT / "docs/serving.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:3] == "| `"]
    told = {row[0].strip("`"): row[1:] for row in rows if len(row) == 3}
    for code, (status, meaning) in messages.CODES.items():
        assert told[code] == [str(status), meaning]
