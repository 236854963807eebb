"""The document as HTML and as Markdown. Every text is escaped here, wherever it came from."""

from __future__ import annotations

import base64
import re
from html import escape
from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Code, Figure, Paragraph, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.report.blocks import Block, Card, Document

_MARKS = {"good": "✓", "caution": "!", "bad": "✗"}
_CODE_FROM_COLUMNS = 24
_NARROW_COLUMNS = 2
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

# Colours differ in lightness as well as in hue, and each tone has its own mark: a grey print says the same.
_STYLE = """
:root { --ink: #1c2733; --soft: #5b6b7b; --line: #d5dce3; --paper: #ffffff; --wash: #f4f7f9;
  --good: #1b6e3c; --good-wash: #e9f5ee; --caution: #8a5a00; --caution-wash: #fdf4e0;
  --bad: #a3231f; --bad-wash: #fceceb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue",
  "DejaVu Sans", Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 40px 48px 64px; background: var(--paper); }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 0 0 12px; max-width: 46rem; }
.subtitle { color: var(--soft); margin-bottom: 24px; }
.verdict { display: flex; gap: 16px; align-items: center; padding: 18px 22px; border-left: 8px solid; border-radius:
6px;
  font-size: 1.3rem; line-height: 1.35; font-weight: 600; margin-bottom: 18px; }
.verdict .mark { flex: none; width: 40px; height: 40px; border-radius: 50%; border: 3px solid; display: grid;
  place-items: center; font-size: 1.25rem; line-height: 1; }
.good { color: var(--good); background: var(--good-wash); border-color: var(--good); }
.caution { color: var(--caution); background: var(--caution-wash); border-color: var(--caution); }
.bad { color: var(--bad); background: var(--bad-wash); border-color: var(--bad); }
.claim { font-size: 1.05rem; max-width: none; }
.limits { margin: 18px 0 0; font-size: .95rem; } .limits ul { margin-top: 4px; } .limits li { max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 22px 0 8px; }
.card { border: 1px solid var(--line); border-top: 4px solid; border-radius: 6px; padding: 12px 14px; background: none;
} .card .label { color: var(--soft); font-size: .85rem; } .card .value { font-size: 1.25rem; font-weight: 600;
line-height: 1.3; overflow-wrap: anywhere; } .card .note { color: var(--ink); font-size: .85rem; line-height: 1.4;
margin-top: 4px; } .scroll { overflow-x: auto; margin: 8px 0 20px; } table { border-collapse: collapse; width: 100%;
font-size: .92rem; font-variant-numeric: tabular-nums; } caption { text-align: left; color: var(--soft);
padding-bottom: 6px; } th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line);
vertical-align: top; } th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child, .text th, .text td { text-align: left; } table.narrow { width: auto; min-width: 18rem; }
td { overflow-wrap: break-word; } td code { overflow-wrap: anywhere; } .text
td:first-child { width: 34%; } ul { margin: 0 0 14px; padding-left: 22px; } li { margin-bottom: 7px; max-width: 46rem;
} figure { margin: 14px 0 20px; } figure img { width: 100%; height: auto; display: block; } figcaption { color:
var(--soft); font-size: .9rem; margin-top: 4px; } pre { background: var(--wash); border: 1px solid var(--line);
border-radius: 6px; padding: 12px 14px; overflow-x: auto;
  font-size: .9rem; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: .92em; }
@media (max-width: 640px) { main { padding: 24px 18px 40px; } }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e4ebf2; --soft: #9db0c2; --line: #33414f; --paper: #161d25; --wash: #0e1319;
    --good: #63cf94; --good-wash: #12301f; --caution: #e6b455; --caution-wash: #33270c;
    --bad: #ff8f86; --bad-wash: #3a1614; }
  figure img { background: #ffffff; border-radius: 6px; padding: 8px; }
}
@media print {
  @page { size: A4; margin: 16mm 15mm; }
  body { background: none; font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; margin-top: 22pt; } figure, tr, li, .card, .verdict, pre { break-inside: avoid; }
  thead { display: table-header-group; break-after: avoid; } caption { break-after: avoid; }
  .cards { grid-template-columns: repeat(4, 1fr); } .card .value { font-size: 11pt; }
  table { font-size: 9pt; } th, td { padding: 4px 6px; } .scroll { overflow: visible; }
  .verdict, .card { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""".strip()


def html_of(document: Document, figures: Mapping[str, bytes]) -> str:
    """One self-contained page: no script, no link to anywhere, plots inlined. `figures` are SVG files by name."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Even if something slipped through the escaping, it could load and run nothing.
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{escape(document.title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>",
        f'<h1>{escape(document.title)}</h1>\n<p class="subtitle">{escape(document.subtitle)}</p>',
        f'<div class="verdict {document.tone}"><span class="mark" aria-hidden="true">{_MARKS[document.tone]}</span>',
        f"<span>{escape(document.headline)}</span></div>",
        f'<p class="claim">{escape(document.claim)}</p>',
        f'<div class="cards">{"".join(map(_card, document.cards))}</div>',
        f'<div class="limits"><strong>What this does not say</strong>{_list(document.limits)}</div>',
    ]
    for index, section in enumerate(document.sections, start=1):
        parts.append(f"<section>\n<h2>{index}. {escape(section.heading)}</h2>")
        parts += [_html_block(block, figures) for block in section.blocks]
        parts.append("</section>")
    return "\n".join([*parts, "</main>\n</body>\n</html>\n"])


def markdown_of(document: Document) -> str:
    """The same text for terminals, diffs and wikis; plots are left to the page, their figures are in the tables."""
    parts = [
        f"# {_plain(document.title)}",
        _plain(document.subtitle),
        f"> **{_MARKS[document.tone]} {_plain(document.headline)}**",
        _plain(document.claim),
        "\n".join(f"- **{_plain(c.label)}: {_plain(c.value)}** ({_plain(c.note)})" for c in document.cards),
        "**What this does not say**",
        "\n".join(f"- {_plain(text)}" for text in document.limits),
    ]
    for index, section in enumerate(document.sections, start=1):
        parts.append(f"## {index}. {_plain(section.heading)}")
        parts += [text for block in section.blocks if (text := _markdown_block(block))]
    return "\n\n".join(parts) + "\n"


def _card(card: Card) -> str:
    colours = f"border-top-color: var(--{card.tone})"
    return (
        f'<div class="card" style="{colours}"><div class="label">{escape(card.label)}</div>'
        f'<div class="value">{_MARKS[card.tone]} {escape(card.value)}</div>'
        f'<div class="note">{escape(card.note)}</div></div>'
    )


def _html_block(block: Block, figures: Mapping[str, bytes]) -> str:
    match block:
        case Paragraph():
            return f"<p>{escape(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{_lead(lead)}{escape(text)}</li>" for lead, text in block.items) + "</ul>"
        case Table():
            return _html_table(block)
        case Code():
            return f"<pre><code>{escape(block.text)}</code></pre>"
        case Figure():
            if block.name not in figures:
                return ""
            data = base64.b64encode(figures[block.name]).decode()
            return (
                f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(block.alternative)}">'
                f"<figcaption>{escape(block.caption)}</figcaption></figure>"
            )


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _lead(lead: str) -> str:
    return f"<strong>{escape(lead)}</strong> " if lead else ""


def _html_table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    kind = ' class="text"' if table.is_text else ' class="narrow"' if len(table.header) <= _NARROW_COLUMNS else ""
    return (
        f'<div class="scroll"><table{kind}>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(text: str) -> str:
    """Hashes and long identifiers read better in a fixed width."""
    is_code = len(text) > _CODE_FROM_COLUMNS and " " not in text
    return f"<code>{escape(text)}</code>" if is_code else escape(text)


def _markdown_block(block: Block) -> str:
    match block:
        case Paragraph():
            return _plain(block.text)
        case Bullets():
            return "\n".join(f"- {f'**{_plain(lead)}** ' if lead else ''}{_plain(text)}" for lead, text in block.items)
        case Table():
            lines = [block.header, tuple("---" for _ in block.header), *block.rows]
            table = "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
            return f"{_plain(block.caption)}\n\n{table}" if block.caption else table
        case Code():
            return "```sh\n" + block.text.replace("```", "'''") + "\n```"
        case Figure():
            return ""


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
