"""What the service reads and writes as JSON, and the one form of its errors.

In: the bytes of a request's body.
Out: checked requests; or Refused, which becomes {"error": {"code", "message", "field"}}.
A message never repeats what came in: that may be someone's diary. For the same reason a key that is
not known is not named.
"""

import json
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyflower.sheets.sheet import says_nothing

MAX_TEXTS = 256  # of one predict request
MAX_CHARACTERS = 100_000  # of one request's texts together

# code → HTTP status, and what it means (docs/serving.md has the same table, by a test)
CODES = {
    "invalid_json": (422, "the body is no JSON in UTF-8, or has NaN, a key twice or deep nesting"),
    "unauthorized": (401, "no bearer token, or a wrong one"),
    "not_found": (404, "no such path"),
    "method_not_allowed": (405, "the path has other methods; see the header Allow"),
    "timeout": (408, "the body did not arrive in time"),
    "too_large": (413, "the body has more bytes than the service takes"),
    "invalid_field": (422, "a field is missing, not known, of another type or out of range"),
    "no_text": (422, "the text says nothing"),
    "too_long": (422, "more text than the endpoint takes"),
    "internal": (500, "a fault of the service; its log has the place, without any text"),
    "busy": (503, "too many requests wait, or this one waited too long; see Retry-After"),
    "stopping": (503, "the service is about to end; ask again"),
}
RETRY_AFTER = "1"  # seconds

Model = TypeVar("Model", bound=BaseModel)


class Refused(Exception):
    """A request that gets an error in place of an answer."""

    def __init__(
        self,
        code: str,
        message: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(code)
        self.code, self.message, self.field = code, message, field
        self.headers = dict(headers or {})
        if code in ("busy", "stopping"):
            self.headers.setdefault("Retry-After", RETRY_AFTER)

    @property
    def status(self) -> int:
        return CODES[self.code][0]

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "field": self.field}}


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    unsure_below: float = Field(
        default=0.0, ge=0, le=1, description="an answer less probable than this is labelled 모름"
    )


class Texts(Request):
    texts: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] = Field(
        min_length=1,
        max_length=MAX_TEXTS,
        description=f"at most {MAX_CHARACTERS} characters together",
    )


class Text(Request):
    text: str = Field(max_length=MAX_CHARACTERS)


class Answer(BaseModel):
    label: str = Field(description="the most probable class, or 모름")
    probabilities: dict[str, float] = Field(description="of every class, most probable first")


class PredictedText(Answer):
    cut: bool = Field(description="the text has more than max_len token ids; its end was not read")
    mostly_unknown: bool = Field(
        description="the encoder's vocabulary lacks most of it; the label says little"
    )


class Predictions(BaseModel):
    predictions: list[PredictedText] = Field(description="one for each text, in their order")


class PieceOfDiary(Answer):
    start: int = Field(description="the piece is text[start:end], in code points")
    end: int
    text: str


class ReadDiary(Answer):
    pieces: list[PieceOfDiary] = Field(description="sentences, or windows of a long one")


class ExplainedWord(BaseModel):
    start: int = Field(description="the word is text[start:end], in code points")
    end: int
    text: str
    change: float = Field(
        description="of the most probable class: p with the word minus p without it"
    )


class ExplainedText(Answer):
    words: list[ExplainedWord]


class ServedModel(BaseModel):
    labels: list[str]
    max_len: int = Field(description="token ids that predict reads of a text")
    temperature: float | None = Field(description="null: the probabilities are not calibrated")
    version: str = Field(description="of storyflower")


class Fault(BaseModel):
    code: str = Field(json_schema_extra={"enum": list(CODES)})
    message: str
    field: str | None = Field(description="the field of the request that is to blame, if one is")


class Error(BaseModel):
    error: Fault


def parse(body: bytes, model: type[Model]) -> Model:
    """The checked request in a body. Raises Refused."""
    try:
        document = json.loads(
            body.decode("utf-8"), object_pairs_hook=no_key_twice, parse_constant=no_constant
        )
    except UnicodeDecodeError:
        raise Refused("invalid_json", "the body is not UTF-8") from None
    except RecursionError:
        raise Refused("invalid_json", "the body is nested too deep") from None
    except json.JSONDecodeError as error:
        message = f"the body is not JSON (line {error.lineno}, column {error.colno})"
        raise Refused("invalid_json", message) from None
    except ValueError:  # more digits than Python reads
        raise Refused("invalid_json", "the body has a number that is too long") from None
    if not isinstance(document, dict):
        raise Refused("invalid_field", "the body must be a JSON object")
    try:
        request = model.model_validate(document)
    except ValidationError as error:
        raise refusal(error, model) from None
    check_texts(request)
    return request


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise Refused("invalid_json", "an object has the same key twice")
    return result


def no_constant(_: str) -> NoReturn:
    raise Refused("invalid_json", "NaN and Infinity are not JSON")


def refusal(error: ValidationError, model: type[BaseModel]) -> Refused:
    """The first fault that pydantic found, in our words."""
    fault = error.errors(include_url=False, include_input=False)[0]
    kind, limits = fault["type"], fault.get("ctx", {})
    known = list(model.model_fields)
    if kind == "extra_forbidden":
        message = f"a field is not known; the fields are {' and '.join(sorted(known))}"
        return Refused("invalid_field", message)
    field = ".".join(map(str, fault["loc"]))
    if kind == "too_long":
        return Refused("too_long", f"at most {limits['max_length']} texts a request", field)
    if kind == "string_too_long":
        return Refused("too_long", f"at most {limits['max_length']} characters a request", field)
    messages = {
        "missing": "the field is missing",
        "string_type": "must be a string",
        "string_unicode": "holds half of a surrogate pair, which is no character",
        "list_type": "must be a list of strings",
        "too_short": "must hold at least one text",
        "float_type": "must be a number",
    }
    return Refused("invalid_field", messages.get(kind, "must be a number from 0 to 1"), field)


def check_texts(request: Request) -> None:
    if isinstance(request, Texts):
        if sum(map(len, request.texts)) > MAX_CHARACTERS:
            raise Refused("too_long", f"at most {MAX_CHARACTERS} characters a request", "texts")
    elif isinstance(request, Text) and says_nothing(request.text):
        raise Refused("no_text", "the text says nothing", "text")
