"""Units of reported values."""

from __future__ import annotations

#: kcal/mol in one hartree.
HARTREE_TO_KCALMOL = 627.5094738898777

#: eV in one hartree (CODATA 2018).
HARTREE_TO_EV = 27.211386245988
