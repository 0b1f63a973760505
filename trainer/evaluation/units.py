"""Units of what is reported."""

from __future__ import annotations

#: kcal/mol in one hartree.
HARTREE_TO_KCALMOL = 627.5094738898777
