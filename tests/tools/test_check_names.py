"""Names that were given up are refused where something is defined, and nowhere else."""

from __future__ import annotations

import pytest

from tools.check_names import replaced_names

REPLACED = {"twin": "original", "work_in_slots": "run_concurrently"}


@pytest.mark.parametrize(
    "source",
    [
        "def find_twin(): ...",
        "class TwinTag: ...",
        "def f(twin): ...",
        "for twin in (): ...",
        "self.twin = 1",
        "TWIN_TAG: str = ''",
        "import originals as twin",
        "async def work_in_slots(): ...",
        "def test_a_trial_waits_for_its_twin(): ...",
    ],
)
def test_a_definition_by_a_replaced_word_is_found(source: str) -> None:
    ((line, message),) = replaced_names("module", f"\n{source}", REPLACED)
    assert line == 2
    assert "is called" in message


@pytest.mark.parametrize(
    "source",
    [
        "def twining(): ...",
        "slots = work(in_slots)",
        "'a twin'  # of another twin",
        "trials.c.twin.is_(None)",
        "values(twin=1)",
    ],
)
def test_uses_prose_and_other_words_are_not(source: str) -> None:
    assert list(replaced_names("module", source, REPLACED)) == []


def test_the_name_of_a_module_is_looked_at() -> None:
    assert [line for line, _ in replaced_names("test_twin", "", REPLACED)] == [1]
