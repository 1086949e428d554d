import html.parser
import re

import pytest

from nomic_jax.pipeline.report import (
    EvaluationRow,
    Example,
    Hit,
    StageCurve,
    format_table,
    write_report,
)

NASTY = '<script>alert("&")</script>'
CURVE = StageCurve("mlm", [10, 20, 30], [9.0, 5.0, 4.0], [1e-4, 2e-4, 0.0])
ROWS = [
    EvaluationRow("random weights", {"held out": {"ndcg@10": 0.1, "recall@10": 0.25}}),
    EvaluationRow(
        "BM25",
        {
            "held out": {"ndcg@10": 0.61234, "recall@10": 0.7, "mrr@10": 0.5},
            "other": {"ndcg@10": 1.0},
        },
    ),
]
EXAMPLE = Example(
    "a query",
    "its document",
    {"trained": [Hit("wrong one", 0.9, False), Hit("its document", 0.8, True)]},
)
VOID = {"meta", "link", "br", "img"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and sees that every element is closed."""

    def __init__(self, file):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(tmp_path, **parts):
    file = tmp_path / "report.html"
    write_report(file, **{"title": "a run", **parts})
    return Page(file)


def test_all_parts_are_on_the_page(tmp_path):
    page = report(
        tmp_path, curves=[CURVE], rows=ROWS, examples=[EXAMPLE], facts={"time": "5 min"}
    )
    assert page.tags.count("svg") == 2  # loss and learning rate
    for text in ("a run", "5 min", "random weights", "0.612", "nDCG@10", "Recall@10"):
        assert text in page.text
    for text in ("a query", "wrong one", "0.800 ✓", "0.900 ✗", "last loss 4.000"):
        assert text in page.text


def test_every_text_is_escaped(tmp_path):
    page = report(
        tmp_path,
        title=NASTY,
        curves=[StageCurve(NASTY, [1], [1.0], [1.0]), StageCurve(NASTY, [], [], [])],
        rows=[EvaluationRow(NASTY, {NASTY: {"ndcg@10": 1.0}})],
        examples=[Example(NASTY, NASTY, {NASTY: [Hit(NASTY, 1.0, True)]})],
        facts={NASTY: NASTY},
    )
    assert "script" not in page.tags
    # Title twice, two stages, row, task, query, document, model, hit, fact twice.
    assert page.text.count(NASTY) == 12


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    page = report(tmp_path, curves=[CURVE], rows=ROWS, examples=[EXAMPLE])
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data"):
            assert value.startswith("#")
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", source)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)


def test_the_same_run_gives_the_same_file(tmp_path):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, title="t", curves=[CURVE], rows=ROWS)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_elements_of_two_drawings_do_not_share_names(tmp_path):
    other = StageCurve("contrastive", CURVE.steps, CURVE.loss, CURVE.learning_rate)
    page = report(tmp_path, curves=[CURVE, other])
    clips = {v for n, v in page.attributes if n == "clip-path"}
    assert len(clips) == 4


def test_long_curves_keep_their_last_point_and_the_file_small(tmp_path):
    steps = list(range(200_001))
    losses = [1.0] * 200_000 + [1000.0]  # only the last point is that high
    report(tmp_path, curves=[StageCurve("long", steps, losses, losses)])
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">1000<" in source
    assert len(source) < 200_000


def test_the_best_of_a_column_stands_out(tmp_path):
    report(tmp_path, rows=ROWS)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall("<b>(.*?)</b>", source) == ["0.612", "0.700", "1.000"]


def test_a_failed_report_leaves_the_old_one(tmp_path):
    report(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    with pytest.raises(ValueError, match="'mlm' has 2 steps, 1 losses and 2"):
        report(tmp_path, curves=[StageCurve("mlm", [1, 2], [1.0], [1.0, 2.0])])
    assert (tmp_path / "report.html").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_table_for_a_terminal():
    assert format_table(ROWS) == "\n".join(
        [
            "                held out            other",
            "                nDCG@10  Recall@10  nDCG@10  Recall@10",
            "random weights    0.100      0.250        -          -",
            "BM25              0.612      0.700    1.000          -",
        ]
    )
