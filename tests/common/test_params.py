"""params.yaml: what is accepted, and how anything else is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from docs import params_table
from storyflower.common.errors import InputError
from storyflower.common.params import Params
from storyflower.encoder.card import Card
from tests.support import ROOT

SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
KEYS = list(Params.model_fields)


def load(path: Path, **changes: str) -> Params:
    """The shipped params with some values replaced by a piece of YAML, as `-S key=value` would."""
    lines = [f"{key}: {changes.pop(key, yaml_of(value))}" for key, value in SHIPPED.items()]
    assert not changes
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Params.load(path)


def yaml_of(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()


def refusal(path: Path, **changes: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **changes)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def test_shipped_params_are_the_notebook_s() -> None:
    params = Params.load(ROOT / "params.yaml")
    assert (params.corpus, params.encoder, params.target) == ("sample", "seedling", "major")
    assert params.num_epochs == params.batch_size == params.max_len == "auto"
    assert (params.warmup_ratio, params.max_grad_norm) == (0.1, 1.0)
    assert (params.dr_rate, params.weight_decay) == (0.5, 0.01)
    assert (params.turns, params.log_interval) == (2, 200)
    assert (params.checkpoint_minutes, params.checkpoint_dir) == (5, "auto")
    assert params.learning_rate == params.optimizer == "auto"


def test_shipped_values_are_the_model_s() -> None:
    schema = Params.model_json_schema()["properties"]
    assert {key: field["shipped"] for key, field in schema.items()} == SHIPPED
    assert list(SHIPPED) == KEYS  # in its order, too
    assert Params.check(SHIPPED).model_dump() == SHIPPED  # each shipped value is in its range


@pytest.mark.parametrize(
    ("name", "renewed"),
    [("README.md", params_table.renew_readme), ("params.yaml", params_table.renew_params)],
)
def test_what_is_made_from_the_model(name: str, renewed: Callable[[str], str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    # DVC may have written params.yaml anew, with other blanks before the comments.
    old, new = (re.sub(r"  +#", "  #", each) for each in (text, renewed(text)))
    assert old == new, f"{name} says something else than the fields of Params; run: make readme"


def test_the_korean_table() -> None:
    text = (ROOT / "README.ko.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`) \| (.*?) \| (.*?) \| .+ \|$", text, re.MULTILINE)
    shown = [row for row in rows if row[0].strip("`") in KEYS]
    assert shown == [cells for cells, _ in params_table.table()], "mend README.ko.md by hand"


def test_default_path_is_the_working_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path, num_epochs="7")
    monkeypatch.chdir(path.parent)
    assert Params.load().num_epochs == 7


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Params.check(SHIPPED).num_epochs = 1


def test_the_model_itself_fills_nothing_in() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Params(**SHIPPED, unknown=1)
    with pytest.raises(ValidationError, match="Field required"):
        Params(seed=1)


@pytest.mark.parametrize("key", KEYS)
def test_missing_key(key: str) -> None:
    with pytest.raises(InputError, match=f"^params: key '{key}' is missing$"):
        Params.check({name: value for name, value in SHIPPED.items() if name != key})


@pytest.mark.parametrize("key", ["epochs", "Num_epochs", 5, None, True])
def test_unknown_key(key: object) -> None:
    with pytest.raises(InputError) as caught:
        Params.check({**SHIPPED, key: 1})
    assert str(caught.value).startswith(f"params: unknown key {key!r}; known: corpus, target")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["", "[1, 2]", "{a: 1}", "2024-05-01", "~"])
def test_wrong_type(path: Path, key: str, value: str) -> None:
    assert refusal(path, **{key: value}).startswith(f"{key} must be ")


WHOLE = ("turns", "patience", "average_last", "seed", "log_interval")
REAL = ("max_dropped", "learning_rate", "warmup_ratio", "max_grad_norm", "weight_decay", "dr_rate")
REAL += ("mask_rate", "dev_share", "validation_share", "layer_decay", "label_smoothing")
REAL += ("checkpoint_minutes",)


def test_auto_is_what_the_card_says() -> None:
    card = {"batch_size": 8, "learning_rate": 0.1, "optimizer": "notebook", "mask_rate": 0.2}
    card |= {"num_epochs": 3, "max_len": 32}
    params = Params.check(SHIPPED)
    assert {key: getattr(params, key) for key in card} == dict.fromkeys(card, "auto")
    resolved = params.resolved({**card, "license": "unknown"})
    assert {key: getattr(resolved, key) for key in card} == card
    own = {"batch_size": 9, "learning_rate": 0.2, "optimizer": "adamw", "mask_rate": 0.0}
    own |= {"num_epochs": 4, "max_len": 33}
    assert Params.check({**SHIPPED, **own}).resolved(card).model_dump() == {**SHIPPED, **own}


@pytest.mark.parametrize(
    ("rows", "passes"),
    [(0, 8), (300, 8), (3600, 8), (4000, 8), (4001, 7), (5000, 6), (9600, 3), (10**6, 3)],
)
def test_many_rows_mean_fewer_passes(rows: int, passes: int) -> None:
    card = Card.load(ROOT / "encoders/seedling.yaml").model_dump()
    assert (card["num_epochs"], card["batch_size"], card["most_steps"]) == (8, 32, 1000)
    params = Params.check(SHIPPED)
    assert params.resolved(card, rows=rows).num_epochs == passes
    assert params.resolved({**card, "most_steps": None}, rows=rows).num_epochs == 8
    asked = params.model_copy(update={"num_epochs": 9})
    assert asked.resolved(card, rows=rows).num_epochs == 9


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize(
    "value", ["true", "2.0", "2.5", "'3'", "1e2", "auto", ".nan", ".inf", "'1_0'", "１０"]
)
def test_not_a_whole_number(path: Path, key: str, value: str) -> None:
    message = refusal(path, **{key: value})
    assert message.startswith(f"{key} must be a whole number in [")
    assert message.endswith(f"], got {yaml.safe_load(value)!r}")


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize(
    "value",
    ["true", "fast", ".nan", "nan", ".inf", "inf", "-.inf", "-1", "1e999", "9" * 400]
    + ["'0.1_0'", "０.５", "' 0.5'", "'0.5\\n'", "'0x1'", "'.'", "'e5'", "'٠.٥'"],
)
def test_not_a_number_in_range(path: Path, key: str, value: str) -> None:
    message = refusal(path, **{key: value})
    assert message.startswith(f"{key} must be ")
    assert " a number in " in message
    assert message.endswith(f", got {yaml.safe_load(value)!r}")


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("turns", [1, 4], [0, 5]),
        ("max_len", [3, 512], [2, 513]),
        ("num_epochs", [1, 1000], [0, 1001]),
        ("batch_size", [1, 65536], [0, 65537]),
        ("seed", [0, 2**32 - 1], [-1, 2**32]),
        ("log_interval", [1, 10**9], [0, -200]),
        ("max_dropped", [0, 1], [-0.01, 1.01]),
        ("validation_share", [0, 0.99], [-0.01, 1]),
        ("learning_rate", [1e-9, 1], [0, 1.01]),
        ("warmup_ratio", [0, 1], [-0.01, 1.5]),
        ("max_grad_norm", [1e-6, 1e6], [0, -1.0]),
        ("weight_decay", [0, 1], [-0.01, 1.01]),
        ("dr_rate", [0, 0.99], [-0.01, 1]),
        ("mask_rate", [0, 0.99], [-0.01, 1]),
        ("dev_share", [0, 0.5], [-0.01, 0.51]),
        ("layer_decay", [0.01, 1], [0, 1.01]),
        ("label_smoothing", [0, 0.99], [-0.01, 1]),
        ("average_last", [1, 1000], [0, 1001]),
        ("micro_batch", ["none", 1, 65536], [0, 65537]),
        ("checkpoint_minutes", [0.001, 10**6], [0, 1e7]),
    ],
)
def test_range(key: str, inside: list, outside: list) -> None:
    for value in inside:
        assert getattr(Params.check({**SHIPPED, key: value}), key) == value
    for value in outside:
        with pytest.raises(InputError) as caught:
            Params.check({**SHIPPED, key: value})
        assert str(caught.value).startswith(f"params: {key} must be ")
        assert str(caught.value).endswith(f", got {value!r}")


def test_message_shows_rule_and_value(path: Path) -> None:
    assert refusal(path, warmup_ratio="1.5") == "warmup_ratio must be a number in [0, 1], got 1.5"
    assert refusal(path, learning_rate="automatic") == (
        "learning_rate must be auto or a number in (0, 1], got 'automatic'"
    )
    assert refusal(path, target="minor") == "target must be one of major, fine, got 'minor'"
    assert refusal(path, batch_size="'10'") == (
        "batch_size must be auto or a whole number in [1, 65536], got '10'"
    )
    assert refusal(path, shuffle="1") == "shuffle must be true or false, got 1"


@pytest.mark.parametrize("value", ["5e-5", "5.0e-5", "5E-05", "0.00005", "'5e-5'", "+.5e-4"])
def test_learning_rate_of_dvc_exp_run(path: Path, value: str) -> None:
    """YAML 1.1 reads 5e-5, without a dot, as text."""
    assert load(path, learning_rate=value).learning_rate == 5e-5


def test_auto_learning_rate(path: Path) -> None:
    assert load(path, learning_rate="auto").learning_rate == "auto"
    for value in ("Auto", "~", "''"):
        assert refusal(path, learning_rate=value).startswith("learning_rate must be auto or ")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("target", ["major", "fine"]),
        ("optimizer", ["auto", "adamw", "notebook"]),
        ("class_weights", ["none", "balanced"]),
        ("precision", ["auto", "fp32", "bf16", "fp16"]),
        ("device", ["auto", "cpu", "cuda", "mps"]),
    ],
)
def test_choices(path: Path, key: str, values: list[str]) -> None:
    for value in values:
        assert getattr(load(path, **{key: value}), key) == value
    for value in ("AUTO", "cuda:0", "1", "true", "maj"):
        assert refusal(path, **{key: value}).startswith(f"{key} must be one of {values[0]}, ")


@pytest.mark.parametrize("key", ["corpus", "encoder"])
def test_names_stay_in_their_folder(path: Path, key: str) -> None:
    for name in ("sample", "klue-bert_1.0", "내말뭉치"):
        assert getattr(load(path, **{key: name}), key) == name
    for name in (
        "..",
        "../aihub",
        "/etc",
        "a/b",
        r"a\b",
        "'a b'",
        '"a\\0"',
        ".hidden",
        "''",
        '"a\\n"',
        "2",
    ):
        assert refusal(path, **{key: name}).startswith(f"{key} must be a plain name ")


def test_names_of_columns(path: Path) -> None:
    for value in ("document", "'Review Text'", "[제목, 본문]", "[a]", "[a, b, c, d]"):
        assert load(path, text_columns=value).text_columns == yaml.safe_load(value)
    for value in ("5", "' '", "[]", "[a, b, c, d, e]", "[a, a]", "[a, 5]", "[' ']", "[[a]]"):
        assert refusal(path, text_columns=value).startswith(
            "text_columns must be a header, or a list of 1 to 4 different ones, got "
        )
    assert load(path, label_column="라벨").label_column == "라벨"
    for value in ("5", "[a]", '"a\\nb"'):
        assert refusal(path, label_column=value).startswith("label_column must be a header, got ")


@pytest.mark.parametrize("key", ["corpus", "text_columns", "label_column", "encoder"])
@pytest.mark.parametrize("value", ["5", "1.0", "2024-01-01", "yes"])
def test_what_yaml_does_not_read_as_text(path: Path, key: str, value: str) -> None:
    assert refusal(path, **{key: value}).endswith("; put it in quotes")
    load(path, **{key: f"'{value}'"})


def test_a_header_of_a_list_that_is_no_text(path: Path) -> None:
    assert refusal(path, text_columns="[0, 1]").endswith("got [0, 1]; put it in quotes")


@pytest.mark.parametrize(
    ("override", "columns"),
    [
        ("text_columns=document", "document"),
        ("text_columns='Review Text'", "Review Text"),
        ("text_columns=[title,body]", ["title", "body"]),
        ("text_columns=['제목','본문']", ["제목", "본문"]),
    ],
)
def test_columns_of_dvc_exp_run(path: Path, override: str, columns: object) -> None:
    """As `-S` writes them."""
    from dvc.utils.hydra import apply_overrides

    path.write_bytes((ROOT / "params.yaml").read_bytes())
    for each in ("seed=7", override, "label_column=label"):  # DVC writes the file anew each time
        apply_overrides(path, [each])
    params = Params.load(path)
    assert (params.text_columns, params.label_column, params.seed) == (columns, "label", 7)
    renewed = params_table.renew_params(path.read_text(encoding="utf-8"))
    assert yaml.safe_load(renewed) == params.model_dump()


def test_a_folder_for_checkpoints(path: Path) -> None:
    for value in ("auto", "/content/drive/MyDrive/내 드라이브", "../x"):
        assert load(path, checkpoint_dir=value).checkpoint_dir == value
    for value in ("5", "true", '" "', '"a\\nb"', '"a\\0b"'):
        assert refusal(path, checkpoint_dir=value).startswith("checkpoint_dir must be auto or a f")


def test_what_no_result_depends_on() -> None:
    params = Params.check(SHIPPED)
    names = {"log_interval", "checkpoint_minutes", "checkpoint_dir", "launcher"}
    assert set(params.decisive()) == set(KEYS) - names
    assert params.decisive()["seed"] == 42


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['exit 1']",
        "!!python/name:os.system",
        "!unknown 5",
        "*nowhere",
        "[1, 2",
        "2024-13-01",
        "'",
        "\x00",
        "[" * 10_000,
    ],
)
def test_not_plain_yaml(path: Path, value: str) -> None:
    assert refusal(path, seed=value).startswith("not readable as YAML: ")


def test_a_value_that_is_no_one_s_to_print(path: Path) -> None:
    """Python refuses to write out whole numbers of over 4,300 digits."""
    assert refusal(path, seed="0x1" + "0" * 5000).endswith(", got a number of thousands of digits")


def test_a_key_that_is_there_twice(path: Path) -> None:
    assert refusal(path, seed="1\nseed: 2") == "key 'seed' is there 2 times; keep one"


@pytest.mark.parametrize("content", [b"", b"5", b"- seed", b"seed", b"# nothing"])
def test_no_keys(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected 'key: value' lines"):
        Params.load(path)


def test_not_utf8(path: Path) -> None:
    path.write_bytes("corpus: 말뭉치".encode("cp949"))
    with pytest.raises(InputError, match="not readable as YAML"):
        Params.load(path)


def test_missing_file(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Params.load(path)
    assert str(caught.value) == f"{path}: not found; run this in the repository's root"
