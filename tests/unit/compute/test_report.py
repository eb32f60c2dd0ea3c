"""The report in its three forms; the page must need nothing but itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from coordinator.compute.evaluation import EvaluationReport, RouterLoad, Score
from coordinator.compute.report import to_html, to_json, to_table

MODELS = {"anchor": (3.0, 2.0, 2.4), "pair <code>": (2.9, 1.4, 2.3), "all": (3.0, 1.5, 1.9)}
DOMAINS = ("public", "code", "law & order")
VOID = {"meta", "br", "img", "link", "input", "hr"}


def score(model: str, domain: str, bits: float, baseline: float) -> Score:
    return Score(
        model=model,
        domain=domain,
        documents=20,
        tokens=1000,
        bytes=3000,
        nll=bits * 2079.4,
        perplexity=2 ** (bits * 3),
        perplexity_low=2 ** (bits * 2.9),
        perplexity_high=2 ** (bits * 3.1),
        bits_per_byte=bits,
        bits_per_byte_low=bits * 0.97,
        bits_per_byte_high=bits * 1.03,
        difference=bits - baseline,
        difference_low=bits - baseline - 0.01,
        difference_high=bits - baseline + 0.01,
    )


@pytest.fixture
def report() -> EvaluationReport:
    experts = ["public", "code", "law"]
    loads = [
        RouterLoad(
            model="all", domain=domain, experts=experts, active=[[1.0, 0.6, 0.4]] * 2, probability=[[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]]
        )
        for domain in DOMAINS
    ]
    scores = [score(model, domain, bits[i], MODELS["anchor"][i]) for model, bits in MODELS.items() for i, domain in enumerate(DOMAINS)]
    return EvaluationReport(
        models=list(MODELS),
        domains=list(DOMAINS),
        scores=scores,
        loads=loads,
        same_tokenizer=True,
        seq_len=256,
        max_tokens=1000,
        parameters=dict.fromkeys(MODELS, 2_000_000),
    )


class Page(HTMLParser):
    """Checks that tags are closed in order and keeps attributes and texts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_well_formed_and_fetches_nothing(report: EvaluationReport) -> None:
    source = to_html(report, title="Elmgrove <evaluation>")
    page = Page(source)
    assert page.open == []
    assert "script" not in {tag for tag, _, _ in page.attributes}
    assert "<script" not in source
    fetching = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    assert [name for _, name, _ in page.attributes if name in fetching] == []
    assert not re.search(r"url\(|@import|https?://|//[a-z]", source)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def test_the_page_shows_every_figure_and_escapes_names(report: EvaluationReport) -> None:
    source = to_html(report)
    text = " ".join(Page(source).texts)
    for each in report.scores:
        assert f"{each.perplexity:,.2f}" in text
        assert f"{each.bits_per_byte:.3f}" in text
    assert "pair <code>" in text
    assert "<code>" not in source
    assert "law & order" in text


def test_pictures_say_in_words_what_they_show(report: EvaluationReport) -> None:
    page = Page(to_html(report))
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == len(DOMAINS) + 1
    assert "all 1.500" in labels[1]
    assert "public 40%, code 40%, law 20%" in labels[-1]
    assert sum(1 for tag, name, value in page.attributes if (tag, name, value) == ("svg", "role", "img")) == len(labels)


def test_both_colour_schemes(report: EvaluationReport) -> None:
    source = to_html(report)
    light, dark = source.split("prefers-color-scheme:dark", 1)
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", source))
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_bars_end_where_their_figure_says(report: EvaluationReport) -> None:
    page = Page(to_html(report))
    widths = [float(value) for tag, name, value in page.attributes if tag == "rect" and name == "width"][: len(MODELS)]
    bits = [report.score(model, "public").bits_per_byte for model in report.models]
    assert [width / widths[0] for width in widths] == pytest.approx([bit / bits[0] for bit in bits], abs=2e-3)


def test_without_router_or_with_other_tokenizers(report: EvaluationReport) -> None:
    dense = to_html(replace(report, loads=[]))
    assert "Router of" not in dense
    foreign = replace(report, same_tokenizer=False)
    assert "<h2>Perplexity" not in to_html(foreign)
    assert "different tokenizers" in to_html(foreign)
    assert "Perplexity (" not in to_table(foreign)
    assert "different tokenizers" in to_table(foreign)


def test_one_model_alone(report: EvaluationReport) -> None:
    alone = replace(report, models=["all"], scores=[each for each in report.scores if each.model == "all"])
    assert Page(to_html(alone)).open == []
    assert "all" in to_table(alone)


def test_the_table_is_aligned_and_marks_the_best(report: EvaluationReport) -> None:
    block = to_table(report).split("\n\n")[0].splitlines()
    header, rule, *rows = block[1:]
    assert header.split("  ")[0] == "model"
    ends = [match.end() for match in re.finditer(r"-+", rule)]
    for row in rows:
        for end in ends[1:]:
            assert row.ljust(end)[end - 1] in "* "
            assert row[end - 2].isdigit()
    assert rows[1].count("*") == 2  # best on public and code
    assert rows[2].count("*") == 2  # best on law and in the mean


def test_json_is_complete(report: EvaluationReport) -> None:
    value = json.loads(to_json(report))
    assert value["models"] == list(MODELS)
    assert value["loads"][0]["experts"] == ["public", "code", "law"]
    assert value["scores"][0]["bits_per_byte"] == 3.0
