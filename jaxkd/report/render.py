"""A document of headings, paragraphs, tables and pictures → Markdown and one HTML file."""

import base64
import dataclasses
import html
import pathlib


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells of text; a line break in one is "\\n".

  Attributes:
    head: of the columns.
    rows: cells of each row.
    below: of each row, what goes under it over the whole width (the last column in Markdown).
    below_head: its heading.
    marked: indices of rows to set in bold.
  """

  head: list[str]
  rows: list[list[str]]
  below: list[str] | None = None
  below_head: str = ""
  marked: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG in the report's folder, and what it shows."""

  file: str
  caption: str


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and what stands under it: paragraphs, lists of them, tables, pictures."""

  title: str
  blocks: list[str | list[str] | Table | Picture]


def markdown(title: str, sections: list[Section]) -> str:
  """The document as Markdown; pictures are links to files beside it."""
  parts = [f"# {_md(title)}"]
  for section in sections:
    parts.append(f"## {_md(section.title)}")
    parts += [_md_block(block) for block in section.blocks]
  return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
  for sign in "\\|<>*_[]`#":
    text = text.replace(sign, "\\" + sign)
  return text.replace("\n", "<br>")


def _md_code(text: str) -> str:
  """Each line as code; a bar would end the cell."""
  return "<br>".join(f"`{line.replace('|', chr(92) + '|')}`" for line in text.split("\n"))


def _md_block(block) -> str:
  if isinstance(block, str):
    return _md(block)
  if isinstance(block, list):
    return "\n".join(f"- {_md(item)}" for item in block)
  if isinstance(block, Picture):
    return f"![{_md(block.caption)}]({block.file})\n\n{_md(block.caption)}"
  head = block.head + ([block.below_head] if block.below else [])
  lines = [_md_row(map(_md, head)), _md_row("---" for _ in head)]
  for number, row in enumerate(block.rows):
    cells = [_md(cell) for cell in row]
    if number in block.marked:
      cells[0] = f"**{cells[0]}**"
    lines.append(_md_row([*cells, _md_code(block.below[number])] if block.below else cells))
  return "\n".join(lines)


def _md_row(cells) -> str:
  return "| " + " | ".join(cells) + " |"


# Cards instead of a table on a phone; on paper a landscape page without colour.
_STYLE = """
:root { --ink: #1a1a1a; --faint: #666; --line: #ddd; --soft: #f6f6f4; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a0a0a0; --line: #3a3a3a; --soft: #222; --page: #161616; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 92rem; color: var(--ink);
  background: var(--page); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p, li { max-width: 50rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { padding: .35rem .55rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--ink); font-weight: 600; vertical-align: bottom; }
td { font-variant-numeric: tabular-nums; }
td.short { white-space: nowrap; }
tbody { border-bottom: 1px solid var(--line); }
tbody.marked { background: var(--soft); } tbody.marked td:first-child { font-weight: 600; }
td.below { padding-top: 0; color: var(--faint); overflow-wrap: anywhere; }
code { font: .78rem/1.4 ui-monospace, monospace; display: block; }
figure { margin: 1.2rem 0; } figcaption { color: var(--faint); max-width: 50rem; }
img { max-width: 100%; height: auto; background: #fff; }
@media screen and (max-width: 760px) {
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tbody { padding: .6rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; padding: .12rem 0;
    text-align: right; }
  td.empty { display: none; }
  td::before { content: attr(data-name); color: var(--faint); text-align: left; flex: none; }
  td:first-child { font-weight: 600; }
  figure { overflow-x: auto; } img { min-width: 36rem; }
  td.below { display: block; text-align: left; padding-top: .3rem; }
}
@media print {
  @page { size: landscape; margin: 12mm; }
  :root { --ink: #000; --faint: #444; --line: #bbb; --soft: #eee; --page: #fff; }
  body { padding: 0; max-width: none; font-size: 9pt; }
  table { font-size: 7pt; } th, td { padding: .15rem .3rem; } code { font-size: 6pt; }
  h2 { break-after: avoid; } tbody, figure, tr { break-inside: avoid; }
  img { max-height: 150mm; width: auto; }
}
"""


def page(title: str, sections: list[Section], folder: pathlib.Path) -> str:
  """The document as one HTML file that needs no other; pictures are read from `folder`."""
  body = [f"<h1>{html.escape(title)}</h1>"]
  for section in sections:
    blocks = "\n".join(_html_block(block, folder) for block in section.blocks)
    body.append(f"<section>\n<h2>{html.escape(section.title)}</h2>\n{blocks}\n</section>")
  return "\n".join(
    [
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
      *body,
      "</body>\n</html>\n",
    ]
  )


def _html_block(block, folder: pathlib.Path) -> str:
  if isinstance(block, str):
    return f"<p>{_html(block)}</p>"
  if isinstance(block, list):
    return "<ul>\n" + "\n".join(f"<li>{_html(item)}</li>" for item in block) + "\n</ul>"
  if isinstance(block, Picture):
    data = base64.b64encode((folder / block.file).read_bytes()).decode()
    return (
      f'<figure>\n<img alt="{html.escape(block.caption)}" src="data:image/png;base64,{data}">\n'
      f"<figcaption>{_html(block.caption)}</figcaption>\n</figure>"
    )
  head = "".join(f"<th>{_html(cell)}</th>" for cell in block.head)
  rows = "\n".join(_html_row(block, number) for number in range(len(block.rows)))
  return f'<div class="wide">\n<table>\n<thead><tr>{head}</tr></thead>\n{rows}\n</table>\n</div>'


def _html_row(table: Table, number: int) -> str:
  cells = "".join(
    f'<td class="{_cell_class(cell)}" data-name="{html.escape(name)}">{_html(cell)}</td>'
    for name, cell in zip(table.head, table.rows[number], strict=True)
  )
  rows = f"<tr>{cells}</tr>"
  if table.below:
    code = "".join(f"<code>{html.escape(line)}</code>" for line in table.below[number].split("\n"))
    rows += f'<tr><td class="below" colspan="{len(table.head)}">{code}</td></tr>'
  marked = ' class="marked"' if number in table.marked else ""
  return f"<tbody{marked}>{rows}</tbody>"


def _cell_class(cell: str) -> str:
  return "empty" if not cell else "short" if max(map(len, cell.split("\n"))) < 22 else "long"


def _html(text: str) -> str:
  return html.escape(text).replace("\n", "<br>")
