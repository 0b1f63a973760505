"""A report as Markdown with image files, for the supplement of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dashboards.drawing import png
from dashboards.formatting import markdown_block, markdown_text
from dashboards.report.contents import Section, StudyReport, Table


@dataclass(frozen=True)
class Markdown:
    """The text, and the images that it shows, by file name."""

    text: str
    pictures: dict[str, bytes]


def report_markdown(report: StudyReport, folder: str) -> Markdown:
    """Render the report as Markdown.

    Parameters
    ----------
    folder
        Folder of the images, relative to the text.
    """
    pictures: dict[str, bytes] = {}
    lines = [f"# {markdown_text(report.title)}", "", report.subtitle, ""]
    for section in report.sections:
        lines += _section(section, folder, pictures)
    return Markdown("\n".join(lines).rstrip() + "\n", pictures)


def _section(section: Section, folder: str, pictures: dict[str, bytes]) -> Iterator[str]:
    yield from (f"{'#' * section.level} {markdown_text(section.title)}", "")
    for paragraph in section.text:
        yield from (markdown_text(paragraph), "")
    if section.table is not None:
        yield from _table(section.table)
    for chart in section.charts:
        name = f"{len(pictures) + 1:02d}-{chart.name.replace('_', '-')}.png"
        pictures[name] = png(chart)
        yield from (f"![{markdown_text(chart.alt)}]({folder}/{name})", "")
    for text in section.copied:
        yield from (markdown_block(text), "")


def _table(table: Table) -> Iterator[str]:
    rule = ["---:" if i in table.numbers else "---" for i in range(len(table.headings))]
    for row in (table.headings, rule, *table.rows):
        yield f"| {' | '.join(cell if row is rule else markdown_text(cell) for cell in row)} |"
    yield ""
