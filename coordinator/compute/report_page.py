"""The evaluation's HTML page: tables and inline SVG under one style sheet, without scripts or anything fetched from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from coordinator.compute.evaluation import EvaluationReport, RouterLoad, Score

__all__ = ["render_page"]

_SERIES = 8  # colours in the style sheet; more models or experts go round
_STRONG = 55  # percent of colour in the strongest cell of a heat map; above it, text would lose contrast
_FULL_SCALE = math.log(2)  # a factor of two against the first model has the strongest colour

_STYLE = """
:root{color-scheme:light dark;
--paper:#fbfbf9;--card:#fff;--ink:#1d2321;--soft:#5d6864;--line:#dfe4e1;--better:#1f9d78;--worse:#d9822b;
--s0:#5b6f95;--s1:#1f9d78;--s2:#d9822b;--s3:#8a63c7;--s4:#c8475d;--s5:#2c8fb8;--s6:#8c8a2a;--s7:#b0588f}
@media (prefers-color-scheme:dark){:root{
--paper:#121615;--card:#1a201e;--ink:#e6ebe8;--soft:#9aa8a2;--line:#2d3633;--better:#35c398;--worse:#e89a4c;
--s0:#8ea3cc;--s1:#3cc79d;--s2:#eba458;--s3:#b597ea;--s4:#ec7f90;--s5:#5fbce2;--s6:#c5c355;--s7:#de8fc1}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .35rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:2.6rem 0 .3rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.3rem 0 .9rem;max-width:46rem}
.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.15rem;overflow-x:auto}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:1.4rem 0 0;padding:0;list-style:none}
.facts b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
table{border-collapse:separate;border-spacing:3px;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:right;padding:.35rem .6rem;white-space:nowrap}
th[scope=row],thead th:first-child{text-align:left}
thead th{color:var(--soft);font-size:.9rem}
td{text-align:right;padding:.45rem .6rem;border-radius:6px;white-space:nowrap}
td small{display:block;color:var(--soft);font-size:.76rem}
td.mean{border-left:3px solid var(--line);border-radius:0}
.best{font-weight:700}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:.2rem 0 .8rem;padding:0;list-style:none;font-size:.9rem}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;margin-right:.4rem;vertical-align:-1px}
.ramp{display:inline-block;width:9rem;height:.7rem;border:1px solid var(--line);border-radius:4px;vertical-align:-1px;margin:0 .4rem;
background:linear-gradient(90deg,color-mix(in srgb,var(--better) 55%,var(--card)),var(--card),
color-mix(in srgb,var(--worse) 55%,var(--card)))}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem}
@media (max-width:30rem){.panels{grid-template-columns:1fr}}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--ink);font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
svg.wide{min-width:34rem}
svg .head{font-weight:600;font-size:14px}
svg .on{fill:#fff;font-weight:600;font-size:12px;paint-order:stroke;stroke:rgba(0,0,0,.45);stroke-width:2.5px}
svg .whisker{stroke:var(--ink);stroke-width:1.4}
svg .axis{stroke:var(--line);stroke-width:1}
details{margin-top:.9rem}
summary{cursor:pointer;color:var(--soft)}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;color:var(--soft);font-size:.9rem}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""


def render_page(report: EvaluationReport, title: str) -> str:
    """The whole page; every name from outside is escaped."""
    sections = [
        _head(report, title),
        _perplexity(report) if report.same_tokenizer else "",
        _bits(report),
        _routers(report),
        _numbers(report),
        _method(report),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(report: EvaluationReport, title: str) -> str:
    """Title and the figures that a reader looks for first."""
    best = min(report.models, key=report.mean_bits)
    first = report.models[0]
    facts = [(str(len(report.models)), "models"), (str(len(report.domains)), "domains")]
    facts.append((f"{sum(each.tokens for each in report.scores if each.model == first):,}", "tokens scored per model"))
    if len(report.models) > 1:
        change = 100 * (report.mean_bits(best) / report.mean_bits(first) - 1)
        facts.append((f"{change:+.1f}%".replace("-", "\N{MINUS SIGN}"), f"mean bits per byte, {best} against {first}"))
    items = "".join(f"<li><b>{value}</b><span class=soft>{escape(text)}</span></li>" for value, text in facts)
    verdict = f"Best on the mean over all domains: <strong>{escape(best)}</strong>."
    return f"<header><h1>{escape(title)}</h1><p class=soft>{verdict}</p><ul class=facts>{items}</ul></header>"


# --- heat map ---------------------------------------------------------------------------------------------------------


def _tint(value: float, baseline: float) -> str:
    """Background of a cell: how much better or worse than ``baseline``, on a logarithmic scale."""
    ratio = math.log(value / baseline) / _FULL_SCALE
    strength = round(_STRONG * min(1.0, abs(ratio)))
    colour = "better" if ratio < 0 else "worse"
    return f"background:color-mix(in srgb,var(--{colour}) {strength}%,var(--card))"


def _perplexity(report: EvaluationReport) -> str:
    first = report.models[0]
    best = {domain: min(report.score(model, domain).perplexity for model in report.models) for domain in report.domains}
    lowest = min(report.geometric_mean(model) for model in report.models)
    rows = []
    for model in report.models:
        cells = [_cell(report.score(model, domain), report.score(first, domain), best[domain]) for domain in report.domains]
        mean = report.geometric_mean(model)
        mark = " best" if mean == lowest else ""
        cells.append(f'<td class="mean{mark}" style="{_tint(mean, report.geometric_mean(first))}">{mean:,.2f}</td>')
        rows.append(f"<tr><th scope=row>{escape(model)}</th>{''.join(cells)}</tr>")
    header = "".join(f"<th scope=col>{escape(domain)}</th>" for domain in report.domains)
    key = (
        f"<p class=soft>Against {escape(first)}: half <span class=ramp></span> double. "
        "Bold: the column's best. Small: the 95% interval.</p>"
    )
    return (
        "<section><h2>Perplexity</h2><p class=soft>Per token, lower is better. At a perplexity of 20 the next token is as uncertain as a "
        f"fair choice among 20.</p><div class=card>{key}<table><thead><tr><th scope=col>model</th>{header}"
        f"<th scope=col>geometric mean</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(score: Score, baseline: Score, best: float) -> str:
    mark = " class=best" if score.perplexity == best else ""
    interval = f"{score.perplexity_low:,.1f}\N{EN DASH}{score.perplexity_high:,.1f}"
    return f'<td{mark} style="{_tint(score.perplexity, baseline.perplexity)}">{score.perplexity:,.2f}<small>{interval}</small></td>'


# --- bars -------------------------------------------------------------------------------------------------------------


def _bits(report: EvaluationReport) -> str:
    top = max(each.bits_per_byte_high for each in report.scores)
    panels = "".join(f"<div class=card>{_bars(report, domain, top)}</div>" for domain in report.domains)
    return (
        "<section><h2>Bits per byte</h2><p class=soft>What a model needs to encode one byte of the text, lower is better; comparable "
        "whatever the tokenizer. Lines are 95% intervals over documents; all panels have one scale.</p>"
        f"<div class=panels>{panels}</div></section>"
    )


def _bars(report: EvaluationReport, domain: str, top: float) -> str:
    """Horizontal bars of one domain, one per model, with whiskers."""
    label = min(190, 30 + 7 * max(len(model) for model in report.models))
    row, width = 28, 520
    span = width - label - 62
    scores = [report.score(model, domain) for model in report.models]
    parts = [f'<text class="head" x="0" y="16">{escape(domain)}</text>']
    for place, score in enumerate(scores):
        middle = 42 + row * place
        x, low, high = (label + span * value / top for value in (score.bits_per_byte, score.bits_per_byte_low, score.bits_per_byte_high))
        parts += [
            f'<text x="{label - 8}" y="{middle + 4}" text-anchor="end">{escape(_short(score.model))}</text>',
            f'<rect x="{label}" y="{middle - 8}" width="{x - label:.1f}" height="16" rx="3" fill="var(--s{place % _SERIES})"/>',
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" fill="none"/>',
            f'<text x="{high + 7:.1f}" y="{middle + 4}">{score.bits_per_byte:.3f}</text>',
        ]
    height = 42 + row * len(scores) - 8
    parts.append(f'<path class="axis" d="M{label} 26V{height - 2}"/>')
    said = "; ".join(f"{score.model} {score.bits_per_byte:.3f}" for score in scores)
    return _svg(width, height, f"Bits per byte on {domain}: {said}", parts)


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def _svg(width: int, height: int, description: str, parts: Sequence[str]) -> str:
    """A picture that scales with its card, up to a point: below it the card scrolls."""
    kind = ' class="wide"' if width > 600 else ""
    return f'<svg{kind} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'


# --- router -----------------------------------------------------------------------------------------------------------


def _routers(report: EvaluationReport) -> str:
    """A section for every mixture; those of a single expert beside the public one are folded together."""
    loads = {model: [load for load in report.loads if load.model == model] for model in report.models}
    names = dict.fromkeys(expert for load in report.loads for expert in load.experts)
    colours = {expert: f"var(--s{place % _SERIES})" for place, expert in enumerate(names)}
    large = {model: of for model, of in loads.items() if of and len(of[0].experts) > 2}
    small = {model: of for model, of in loads.items() if of and len(of[0].experts) <= 2}
    parts = [
        f"<section><h2>Router of {escape(model)}</h2><p class=soft>The share of each expert in the mix for the text of each domain: router "
        f"probability, mean over tokens and layers.</p><div class=card>{_router(of, colours)}</div></section>"
        for model, of in large.items()
    ]
    if small:
        folded = "".join(f"<h3>{escape(model)}</h3><div class=card>{_router(of, colours)}</div>" for model, of in small.items())
        parts.append(f"<section><h2>Routers of pairs</h2><details><summary>Show one by one</summary>{folded}</details></section>")
    return "\n".join(parts)


def _router(loads: Sequence[RouterLoad], colours: Mapping[str, str]) -> str:
    """Key, bars and layers of one mixture."""
    key = "".join(f'<li><i style="background:{colours[expert]}"></i>{escape(expert)}</li>' for expert in loads[0].experts)
    layers = "".join(_layers(load) for load in loads)
    return f"<ul class=key>{key}</ul>{_stacks(loads, colours)}<details><summary>Layer by layer</summary>{layers}</details>"


def _stacks(loads: Sequence[RouterLoad], colours: Mapping[str, str]) -> str:
    """One bar per domain, divided among the experts."""
    label = min(190, 24 + 7 * max(len(load.domain) for load in loads))
    width, row = 900, 34
    span = width - label - 4
    parts: list[str] = []
    for place, load in enumerate(loads):
        x, y = float(label), 6 + row * place
        parts.append(f'<text x="{label - 10}" y="{y + 17}" text-anchor="end">{escape(_short(load.domain))}</text>')
        for expert, share in zip(load.experts, load.mean_probability, strict=True):
            piece = span * share
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(0.0, piece - 1.5):.1f}" height="24" rx="2" fill="{colours[expert]}">'
                f"<title>{escape(expert)}: {100 * share:.1f}%</title></rect>"
            )
            if piece > 44:
                parts.append(f'<text class="on" x="{x + piece / 2:.1f}" y="{y + 17}" text-anchor="middle">{100 * share:.0f}%</text>')
            x += piece
    said = "; ".join(f"{load.domain}: {_spoken(load)}" for load in loads)
    return _svg(width, 6 + row * len(loads), f"Router probability per domain. {said}", parts)


def _spoken(load: RouterLoad) -> str:
    return ", ".join(f"{expert} {100 * share:.0f}%" for expert, share in zip(load.experts, load.mean_probability, strict=True))


def _layers(load: RouterLoad) -> str:
    """Probability and activity of every expert in every layer."""
    header = "".join(f"<th scope=col>{escape(expert)}</th>" for expert in load.experts)
    rows = []
    for layer, (shares, active) in enumerate(zip(load.probability, load.active, strict=True)):
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--s0) {round(_STRONG * share)}%,var(--card))">{100 * share:.1f}%'
            f"<small>active {100 * on:.0f}%</small></td>"
            for share, on in zip(shares, active, strict=True)
        )
        rows.append(f"<tr><th scope=row>layer {layer}</th>{cells}</tr>")
    return f"<h3>{escape(load.domain)}</h3><table><thead><tr><th scope=col></th>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


# --- figures and method -----------------------------------------------------------------------------------------------


def _numbers(report: EvaluationReport) -> str:
    rows = [_number_row(each) for domain in report.domains for each in report.scores if each.domain == domain]
    names = ["domain", "model", "documents", "tokens", "bytes", "nats per token", "perplexity", "bits per byte"]
    names.append(f"against {report.models[0]}")
    header = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    return (
        "<section><h2>All figures</h2><details><summary>Show the table</summary><div class=card><table>"
        f"<thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details></section>"
    )


def _number_row(score: Score) -> str:
    gap = f"{score.difference:+.3f}<small>{score.difference_low:+.3f} to {score.difference_high:+.3f}</small>"
    cells = [
        f"{score.documents:,}",
        f"{score.tokens:,}",
        f"{score.bytes:,}",
        f"{score.nll / score.tokens:.4f}",
        f"{score.perplexity:,.2f}",
        f"{score.bits_per_byte:.4f}",
        gap.replace("-", "\N{MINUS SIGN}"),
    ]
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><th scope=row>{escape(score.domain)}</th><th scope=row>{escape(score.model)}</th>{body}</tr>"


def _method(report: EvaluationReport) -> str:
    sizes = ", ".join(f"{escape(model)} {report.parameters[model] / 1e6:,.1f} million" for model in report.models)
    note = "" if report.same_tokenizer else " The models have different tokenizers, so perplexities are not shown."
    return (
        f"<footer><p>All models scored the same text: at most {report.max_tokens:,} tokens of each domain, every document from its start "
        f"in windows of {report.seq_len} tokens without context across windows; the first token of a document and its end are not scored. "
        f"Intervals: 1,000 bootstrap resamples of documents, paired across models.{note}</p><p>Parameters: {sizes}.</p></footer>"
    )
