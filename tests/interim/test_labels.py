"""The label index, and how it is built from a table of dialogues."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyflower.common.errors import InputError
from storyflower.ingest import ingest
from storyflower.interim import dialogues, labels
from storyflower.interim.labels import LabelIndex

# Names as they may come: any text that utf-8 can hold, 2 to 100 of them.
NAMES = st.lists(st.text(), min_size=2, max_size=12, unique=True) | st.integers(2, 100).map(
    lambda count: [f"감정 {number}" for number in range(count)]
)


@settings(deadline=None, max_examples=50)
@given(NAMES, st.data())
def test_round_trip(names: list[str], data: st.DataObject) -> None:
    index = LabelIndex(names)
    sample = data.draw(st.lists(st.sampled_from(names)))
    numbers = index.encode(sample)
    assert numbers.dtype == "int64"
    assert numbers.shape == (len(sample),)
    assert numbers.tolist() == [names.index(name) for name in sample]
    assert [index.names[number] for number in numbers] == sample
    assert len(index) == len(names)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(NAMES)
def test_saved_and_loaded(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "new" / "labels.json"
    LabelIndex(names).save(path)
    assert LabelIndex.load(path).names == tuple(names)
    assert json.loads(path.read_text(encoding="utf-8")) == {"labels": names}


def test_file_is_readable_by_people(tmp_path: Path) -> None:
    LabelIndex(["기쁨", "분노"]).save(tmp_path / "labels.json")
    assert "기쁨" in (tmp_path / "labels.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"labels": "기쁨"}', "damaged"),
        ('{"labels": [1, 2]}', "damaged"),
        ('{"labels": ["기쁨"]}', "1 distinct labels; 2 to 100 can be learned"),
        ('{"labels": ["기쁨", "분노", "기쁨"]}', "a label appears twice"),
    ],
)
def test_an_index_changed_by_hand(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        LabelIndex.load(path)
    assert str(error.value) == f"{path}: {complaint}; make it again with 'dvc repro'"


@pytest.mark.parametrize("count", [0, 1, 101, 500])
def test_number_of_classes(count: int) -> None:
    with pytest.raises(InputError, match=f"^{count} distinct labels; 2 to 100 can be learned$"):
        LabelIndex(str(number) for number in range(count))


def test_repeated_name() -> None:
    with pytest.raises(InputError, match="a label appears twice"):
        LabelIndex(["기쁨", "분노", "기쁨"])


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="^a label of the dialogues is not in labels.json"):
        LabelIndex(["기쁨", "분노"]).encode(["분노", "슬픔"])


def build(folder: Path, training: list, validation: list, target: str = "major") -> LabelIndex:
    """Ingest two csv files of (감정_대분류, 감정_소분류) and build their index."""
    for split, pairs in (("Training", training), ("Validation", validation)):
        lines = [
            "감정_대분류,감정_소분류,사람문장1",
            *(f"{major},{fine},{split}의 글" for major, fine in pairs),
        ]
        (folder / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    table = folder / "out" / "dialogues.parquet"
    settings = {"turns": 1, "target": target, "max_dropped": 0.5}
    ingest.ingest(folder, table, folder / "out" / "ingest.json", **settings)
    index = labels.build(table, folder / "out" / "labels.json", target=target)
    assert LabelIndex.load(folder / "out" / "labels.json").names == index.names
    return index


TRAINING = [
    ("슬픔", "우울한"),
    ("상처 ", "고립된"),
    ("당황", "고립된 "),
    ("상처", "고립된"),
    ("슬픔", "낙담한"),
]


def test_order_of_first_appearance(tmp_path: Path) -> None:
    validation = [("당황", "고립된"), ("슬픔", "우울한")]
    assert build(tmp_path, TRAINING, validation).names == ("슬픔", "상처", "당황")
    fine = ("슬픔/우울한", "상처/고립된", "당황/고립된", "슬픔/낙담한")
    assert build(tmp_path, TRAINING, validation, "fine").names == fine


@pytest.mark.parametrize(
    ("row", "target", "name"),
    [(("기쁨", "우울한"), "major", "기쁨"), (("당황", "우울한"), "fine", "당황/우울한")],
)
def test_validation_label_that_training_lacks(
    tmp_path: Path, row: tuple, target: str, name: str
) -> None:
    with pytest.raises(InputError) as caught:
        build(tmp_path, TRAINING, [TRAINING[0], ("", ""), row], target)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"{tmp_path / 'Validation.csv'}, row 4: its label is none of the ")
    assert name not in message  # in a column that was mixed up it is somebody's words
    assert not (tmp_path / "out" / "labels.json").exists()


def test_too_few_classes_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(tmp_path, TRAINING[:1], TRAINING[:1])
    assert str(caught.value).startswith(f"{tmp_path / 'Training.csv'}: 1 distinct labels; ")


def test_too_many_classes_names_the_file(tmp_path: Path) -> None:
    pairs = [(f"감정{number}", "") for number in range(101)]
    with pytest.raises(InputError) as caught:
        build(tmp_path, pairs, pairs)
    assert str(caught.value).startswith(f"{tmp_path / 'Training.csv'}, row 102: the 101th label")


@pytest.mark.parametrize("training", [1, 16_383, 16_384, 16_385, 40_000])
def test_batches_keep_the_splits_apart(tmp_path: Path, training: int) -> None:
    """A batch holds up to 16,384 rows, wherever Training ends."""
    splits = ["Training"] * training + ["Validation"] * 3
    columns = {
        "split": splits,
        "row": range(len(splits)),
        "text": ["가"] * len(splits),
        "label": [f"label {number % 7}" for number in range(len(splits))],
        "fine": [None] * len(splits),
        "file": ["표본.csv"] * len(splits),
    }
    path = tmp_path / "dialogues.parquet"
    pq.write_table(pa.table(columns, schema=dialogues.SCHEMA), path)
    read: dict[str, list[int]] = {"Training": [], "Validation": []}
    for split, batch in dialogues.batches(path, ["row"]):
        assert 0 < batch.num_rows <= 16_384
        read[split] += batch.column("row").to_pylist()
    assert read["Training"] == list(range(training))
    assert read["Validation"] == list(range(training, training + 3))
    for split in read:
        whole = pq.read_table(path, filters=[("split", "==", split)])
        assert whole.column("row").to_pylist() == read[split]
        assert dialogues.class_names(whole, "major") == [f"label {row % 7}" for row in read[split]]


def dialogue_table() -> pa.Table:
    columns = {"split": ["Training"] * 9, "row": range(9), "text": ["가나다"] * 9}
    columns |= {"label": ["기쁨", "슬픔", "분노"] * 3, "fine": [None] * 9, "file": ["표본.csv"] * 9}
    return pa.table(columns, schema=dialogues.SCHEMA)


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        (dialogue_table(), (b"PAR1", b"PAR2")),
        (dialogue_table(), (b"PAR1\x15\x00", b"PAR1\xff\xff")),  # a page's header
        (dialogue_table(), ("슬픔".encode(), b"\xff" * 6)),
        (dialogue_table().drop(["fine"]), (b"", b"")),
        (dialogue_table().set_column(0, "split", [range(9)]), (b"", b"")),
    ],
    ids=["file", "page", "text", "column", "type"],
)
def test_a_table_that_ingest_did_not_write(
    tmp_path: Path, table: pa.Table, damage: tuple[bytes, bytes]
) -> None:
    path = tmp_path / "dialogues.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    assert damage[0] in content
    path.write_bytes(content.replace(*damage))
    with pytest.raises(InputError) as caught:
        labels.build(path, tmp_path / "labels.json", target="major")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.splitlines() == [message]
    assert message.endswith("; make it again with 'dvc repro'")
