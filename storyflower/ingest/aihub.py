"""The columns, labels and codes of AI Hub's 감성대화말뭉치."""

from storyflower.common.params import AI_HUB_LABEL, AI_HUB_TEXTS
from storyflower.sheets.sheet import folded

MAJOR, FINE = AI_HUB_LABEL, "감정_소분류"
TURNS = tuple(AI_HUB_TEXTS)

# E10-E69 of AI Hub's label JSON: the tens digit is the major, the ones digit the place in its list.
# E51 and E59 have the workbook's names here. AI Hub's code list adds "(당황한)" to these two, to
# tell them from others with the same name.
CODES = {
    "분노": (
        "분노|툴툴대는|좌절한|짜증내는|방어적인|악의적인|안달하는|구역질 나는|노여워하는|성가신"
    ),
    "슬픔": ("슬픔|실망한|비통한|후회되는|우울한|마비된|염세적인|눈물이 나는|낙담한|환멸을 느끼는"),
    "불안": (
        "불안|두려운|스트레스 받는|취약한|혼란스러운|"
        "당혹스러운|회의적인|걱정스러운|조심스러운|초조한"
    ),
    "상처": (
        "상처|질투하는|배신당한|고립된|충격 받은|가난한, 불우한|희생된|억울한|괴로워하는|버려진"
    ),
    "당황": (
        "당황|고립된|남의 시선을 의식하는|외로운|열등감|"
        "죄책감의|부끄러운|혐오스러운|한심한|혼란스러운"
    ),
    "기쁨": ("기쁨|감사하는|신뢰하는|편안한|만족스러운|흥분|느긋|안도|신이 난|자신하는"),
}
EMOTIONS = {
    f"E{tens}{ones}": (major, fine)
    for tens, (major, names) in enumerate(CODES.items(), start=1)
    for ones, fine in enumerate(names.split("|"))
}


def label_name(label: str) -> str:
    """A label, folded, without the "(당황한)" that tells E51 from E43 in the code list.

    Raises UnicodeEncodeError for half of a surrogate pair.
    """
    label.encode()
    return folded(label).removesuffix("(당황한)").rstrip()
