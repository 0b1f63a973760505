"""XYZ, plain or extended as ASE writes it: many structures in one text file, which may be gzipped.

ASE's own reader creates an object for each structure, and takes some 10 minutes for a million structures.
Here the atoms of many structures are parsed at once.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from trainer.data.arrays import MEMORY
from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.data.frames import Frames
from trainer.data.links import printable
from trainer.errors import DataError
from trainer.progress import Progress, no_progress

GZIP: Final = b"\x1f\x8b"

#: Byte order mark, with which some editors begin a text.
BOM: Final = b"\xef\xbb\xbf"

#: The key of energies in files that ASE writes.
ENERGY: Final = "energy"

#: Bytes of text that are parsed at once, and the most bytes of one structure.
BLOCK: Final = 2**24
LARGEST: Final = 2**28

#: Bytes of memory per atom: its number, and its coordinates twice.
HELD: Final = 1 + 2 * 24

#: Columns if a comment names none: chemical symbols, or atomic numbers, come first.
PLAIN: Final = b"species:S:1:pos:R:3"
NUMBERED: Final = b"Z:I:1:pos:R:3"

#: Keys of a comment that describe its structure; some programs write them in another case.
STRUCTURAL: Final = (b"properties", b"lattice", b"pbc")

_ITEM: Final = re.compile(
    rb"""([^\s="'{}\[\]]+)\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^}]*\}|\[[^\]]*\]|\S+)"""
)

#: Keys that say that a structure has a charge or unpaired electrons, with the values of structures that have
#: none.
CHARGES: Final[Mapping[str, tuple[float, ...]]] = {"charge": (0.0,), "total_charge": (0.0,)}
SPINS: Final[Mapping[str, tuple[float, ...]]] = {
    "spin": (0.0, 1.0),
    "multiplicity": (1.0,),
    "spin_multiplicity": (1.0,),
}

#: Sums of charges, or of magnetic moments, above this are more than a rounding error.
UNPAIRED: Final = 0.5

_NUMBERS: Final = {symbol.encode(): number for symbol, number in ATOMIC_NUMBERS.items()}


@dataclass(frozen=True)
class _Columns:
    """The first column of each quantity of an atom, and the number of columns."""

    symbols: int | None
    numbers: int | None
    positions: int
    width: int
    charges: int | None
    moments: int | None


@dataclass(frozen=True)
class _Keys:
    """The keys of comments that hold the energy and the molecule of a structure."""

    energy: str
    molecule: str | None


@dataclass
class Parsed:
    """The structures of a file, one after another.

    Attributes
    ----------
    numbers, coordinates : arrays that together hold all atoms
    atoms : number of atoms of each structure
    lines : first line of each structure in the file, from 1
    periodic : whether each structure has a repeating cell
    """

    numbers: list[Any] = field(default_factory=list)
    coordinates: list[Any] = field(default_factory=list)
    atoms: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    periodic: list[bool] = field(default_factory=list)
    charged: list[bool] = field(default_factory=list)
    open_shell: list[bool] = field(default_factory=list)
    molecules: list[str] = field(default_factory=list)
    keys: dict[str, None] = field(default_factory=dict)


@dataclass
class _Run:
    """The atoms of consecutive structures with the same columns."""

    properties: bytes
    place: str
    lines: list[bytes] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


def looks_like_xyz(begin: bytes) -> bool:
    """Return whether a file begins with a number of atoms, a comment, and an atom."""
    lines = begin.removeprefix(BOM).lstrip().split(b"\n")
    return len(lines) > 2 and re.fullmatch(rb"\d{1,9}\s*", lines[0]) is not None and len(lines[2].split()) > 3


def read_xyz(path: Path, energy: str | None, molecule: str | None, progress: Progress) -> Frames:
    """Read all structures of an extended XYZ file, with the properties that it states.

    Parameters
    ----------
    energy, molecule : keys of the comments

    Raises
    ------
    DataError
        with the line that cannot be read.
    """
    parsed = _parse(path, _Keys(energy or ENERGY, molecule), progress)
    numbers, coordinates = atoms_of(parsed)
    return Frames(
        numbers=numbers,
        coordinates=coordinates,
        atoms=np.array(parsed.atoms, np.int64),
        energies=np.array(parsed.energies, np.float64),
        periodic=np.array(parsed.periodic, bool),
        charged=np.array(parsed.charged, bool),
        open_shell=np.array(parsed.open_shell, bool),
        molecules=np.array(parsed.molecules, np.str_),
        keys=np.array(list(parsed.keys), np.str_),
    )


def read_xyz_atoms(path: Path) -> Parsed:
    """Read only the atoms of all structures of an XYZ file.

    Raises
    ------
    DataError
        with the line that cannot be read.
    """
    return _parse(path, None, no_progress)


def atoms_of(parsed: Parsed) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Return atomic numbers, (A,), and coordinates, (A, 3), of the atoms of all structures."""
    return (
        np.concatenate([np.empty(0, np.uint8), *parsed.numbers]),
        np.concatenate([np.empty((0, 3)), *parsed.coordinates]),
    )


def _parse(path: Path, keys: _Keys | None, progress: Progress) -> Parsed:
    parsed, stage, total = Parsed(), f"reading {path.name}", max(1, path.stat().st_size)
    first, rest = 1, b""
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        for block in _blocks(file, path):
            text = rest + block
            lines = (text.removeprefix(BOM) if first == 1 else text).split(b"\n")
            done = _read_lines(lines, first, not block, path, keys, parsed)
            first, rest = first + done, b"\n".join(lines[done:])
            if sum(map(len, parsed.numbers)) * HELD > MEMORY:
                raise DataError(
                    f"{path}: its structures do not fit into the {MEMORY / 2**30:,.1f} GiB of memory of "
                    "this machine"
                )
            if len(rest) > LARGEST:
                raise DataError(
                    f"{path}, line {first}: a structure of more than {LARGEST:,} bytes; correct it"
                )
            progress(stage, min(raw.tell(), total), total)
    return parsed


def _blocks(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield blocks of a file, with line ends of Unix or Windows, and an empty block at its end."""
    old_macintosh = None
    try:
        while block := file.read(BLOCK):
            if old_macintosh is None:
                old_macintosh = b"\n" not in block
            yield block.replace(b"\r", b"\n") if old_macintosh else block
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: not a readable file; copy or download it again ({error})") from error
    yield b""


def _read_lines(
    lines: list[bytes],
    first: int,
    last: bool,
    path: Path,
    keys: _Keys | None,
    parsed: Parsed,
) -> int:
    """Parse the complete structures in some lines; return their number of lines.

    Parameters
    ----------
    first : number of the first line in the file, from 1
    last : whether the file ends with these lines
    """
    at, run = 0, _Run(b"", "")
    end = len(lines) if last else len(lines) - 1  # the last line may be incomplete
    while at < end:
        word = lines[at].strip()
        if not word:
            at += 1
            continue
        if not word.isdigit() or len(word) > 9 or int(word) == 0:
            _flush(run, parsed)  # the error may be a wrong number of atoms in the lines above
            raise DataError(
                f"{path}, line {first + at}: expected a number of atoms here, then a comment and the atoms"
                f" (got {_shown(word)})"
            )
        count = int(word)
        begin, after = at + 2, at + 2 + count
        if after > end:
            if last:
                raise DataError(
                    f"{path}, line {first + at}: {count} atoms are expected, and the file ends before; is it"
                    " complete?"
                )
            break
        items = {
            name if (name := key.lower()) in STRUCTURAL else key: value
            for key, value in _ITEM.findall(lines[at + 1])
        }
        properties = items.get(b"properties") or _usual_columns(lines[begin])
        if properties != run.properties:
            _flush(run, parsed)
            run = _Run(properties, f"{path}, line")
        run.lines += lines[begin:after]
        run.at.append(first + begin)
        run.counts.append(count)
        parsed.lines.append(first + at)
        _note_cell(items, parsed)
        if keys is not None:
            _note(items, f"{path}, line {first + at + 1}", keys, parsed)
        at = after
    _flush(run, parsed)
    return at


def _usual_columns(atom: bytes) -> bytes:
    words = atom.split()
    return NUMBERED if words and words[0].lstrip(b"-").isdigit() else PLAIN


def _note_cell(items: dict[bytes, bytes], parsed: Parsed) -> None:
    """Record whether the comment of a structure says that it is periodic."""
    if b"pbc" in items:
        parsed.periodic.append(re.search(rb"\b(T|True|true|1)\b", items[b"pbc"]) is not None)
    else:
        parsed.periodic.append(b"lattice" in items)


def _note(items: dict[bytes, bytes], place: str, keys: _Keys, parsed: Parsed) -> None:
    """Record the other properties in the comment of a structure."""
    value, molecule = items.get(keys.energy.encode()), keys.molecule
    if value is None:
        parsed.energies.append(np.nan)
        for key in (key for key in items if key not in STRUCTURAL):
            parsed.keys.setdefault(printable(key.decode("utf-8", "replace")))
    else:
        parsed.energies.append(_number(value, keys.energy, place))
    parsed.charged.append(_differs(items, CHARGES, place))
    parsed.open_shell.append(_differs(items, SPINS, place))
    if molecule is not None:
        if molecule.encode() not in items:
            raise DataError(f"{place}: there is no key '{molecule}', which data.molecule names; add it")
        parsed.molecules.append(_bare(items[molecule.encode()]).decode("utf-8", "replace"))


def _differs(items: dict[bytes, bytes], keys: Mapping[str, tuple[float, ...]], place: str) -> bool:
    return any(
        _number(items[key.encode()], key, place) not in fine
        for key, fine in keys.items()
        if key.encode() in items
    )


def _number(value: bytes, key: str, place: str) -> float:
    try:
        return float(_bare(value))
    except ValueError:
        raise DataError(f"{place}: {key}={_shown(value)[1:-1]} is not a number; correct it") from None


def _bare(value: bytes) -> bytes:
    return value[1:-1] if value[:1] in (b'"', b"'") and len(value) > 1 else value


def _flush(run: _Run, parsed: Parsed) -> None:
    """Parse the atoms of a run."""
    if not run.lines:
        return
    columns = _columns(run.properties)
    if columns is None:
        raise DataError(
            f"{run.place} {run.at[0] - 1}: Properties={_shown(run.properties)[1:-1]} does not name the "
            "columns of atoms, as species:S:1:pos:R:3 does"
        )
    tokens = b"\n".join(run.lines).split()
    width, left = divmod(len(tokens), len(run.lines))
    # If one line has too few words and another as many too many, a symbol appears where a number is due; if
    # all columns are numbers, this would go unnoticed.
    if left or width < columns.width or len(run.lines[0].split()) != width or columns.symbols is None:
        width, tokens = columns.width, _cut(run, columns.width)
    try:
        positions = np.empty((len(run.lines), 3))
        for axis in range(3):
            positions[:, axis] = list(map(float, tokens[columns.positions + axis :: width]))
        if columns.symbols is not None:
            kinds = [
                _NUMBERS.get(s) or _NUMBERS.get(s.capitalize(), 0) for s in tokens[columns.symbols :: width]
            ]
        else:
            kinds = list(map(int, tokens[columns.numbers :: width]))
        numbers = np.array(kinds, np.int64)
        if numbers.min() < 1 or numbers.max() > len(SYMBOLS):
            raise ValueError
        for column, found in ((columns.charges, parsed.charged), (columns.moments, parsed.open_shell)):
            if column is not None and found:
                values = np.array(list(map(float, tokens[column::width])))
                sums = np.add.reduceat(values, np.cumsum([0, *run.counts[:-1]]))
                found[-len(sums) :] = (np.array(found[-len(sums) :]) | (np.abs(sums) > UNPAIRED)).tolist()
    except ValueError:
        raise _wrong_atom(run, columns) from None
    parsed.numbers.append(numbers.astype(np.uint8))
    parsed.coordinates.append(positions)
    parsed.atoms += run.counts


def _numbered(run: _Run) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each line of a run in the file, and its words."""
    begin = 0
    for at, count in zip(run.at, run.counts, strict=True):
        for index in range(count):
            yield at + index, run.lines[begin + index].split()
        begin += count


def _cut(run: _Run, width: int) -> list[bytes]:
    """Return the words of all atoms, without words beyond the columns."""
    found: list[bytes] = []
    for number, words in _numbered(run):
        if len(words) < width:
            raise DataError(
                f"{run.place} {number}: an atom has {width} columns here "
                f"({printable(run.properties.decode('utf-8', 'replace'))}), and this line has {len(words)}"
            )
        found += words[:width]
    return found


def _wrong_atom(run: _Run, columns: _Columns) -> DataError:
    for number, words in _numbered(run):
        kind = words[columns.symbols if columns.symbols is not None else columns.numbers or 0]
        known = (
            kind.capitalize() in _NUMBERS
            if columns.symbols is not None
            else kind.isdigit() and 0 < int(kind) <= len(SYMBOLS)
        )
        if not known:
            return DataError(
                f"{run.place} {number}: {_shown(kind)} is not an element; use symbols such as H, C, N, O"
            )
        for word in words[columns.positions : columns.positions + 3]:
            try:
                float(word)
            except ValueError:
                return DataError(
                    f"{run.place} {number}: {_shown(word)} is not a coordinate; correct that line"
                )
    return DataError(f"{run.place} {run.at[0]}: an atom after this line cannot be read; correct it")


@cache
def _columns(properties: bytes) -> _Columns | None:
    """Parse the columns that a comment names, as name:type:number:...; None: not those of atoms in space."""
    words = _bare(properties).decode("utf-8", "replace").split(":")
    starts, width = dict[str, int](), 0
    for name, kind, count in zip(words[::3], words[1::3], words[2::3], strict=False):
        if not re.fullmatch("[1-9][0-9]{0,3}", count) or (name == "pos" and (kind, count) != ("R", "3")):
            return None
        starts[name] = width
        width += int(count)
    if len(words) % 3 or "pos" not in starts or not starts.keys() & {"species", "Z"}:
        return None
    sums = (starts.get("initial_charges"), starts.get("initial_magmoms"))
    return _Columns(starts.get("species"), starts.get("Z"), starts["pos"], width, *sums)


def _shown(word: bytes) -> str:
    text = printable(word.decode("utf-8", "replace"))
    return f"'{text[:40]}...'" if len(text) > 43 else f"'{text}'"
