"""Write ``molecules.xyz``: the geometries that :mod:`benchmarks.make_big` perturbs (extra ``dft``: RDKit).

python -m benchmarks.make_molecules
"""

from __future__ import annotations

from typing import Final

from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMolecule
from rdkit.Chem.rdForceFieldHelpers import UFFOptimizeMolecule

from benchmarks.make_big import MOLECULES

#: As many molecules of one to four heavy atoms as the ANI-1 release has: 3, 13, 20 and 61.
SMILES: Final = (
    "C N O",
    "CC C=C C#C CN C=N C#N CO C=O NN N=N NO N=O OO",
    "CCC C=CC CC#C C1CC1 CCN CNC CC=N CN=C CC#N C1CN1 CCO COC CC=O C1CO1 NC=O OC=O N=CN CON CN=O OCO",
    "CCCC CC(C)C CCC=C CC=CC CC(C)=C C=CC=C CCC#C CC#CC C=CC#C C#CC#C C1CCC1 CC1CC1 C1CC=C1 "
    "CCCN CC(C)N CCNC CN(C)C C1CNC1 NC1CC1 CC1CN1 CN1CC1 C=CCN C#CCN CCC=N CC(C)=N CC=NC CCC#N "
    "C=CC#N C#CC#N "
    "CCCO CC(C)O CCOC C1COC1 CC1CO1 OC1CC1 C=CCO C#CCO CCC=O CC(C)=O C=CC=O C#CC=O C=COC "
    "CC(N)=O CNC=O NCC=O CC(O)=O COC=O OCC=O OCCO NCCO NCCN O=CC=O N#CC#N NCC#N OCC#N CN(C)N CNNC "
    "CC=NO NC(N)=O CC(N)=N CN=C=O",
)

SEED: Final = 1


def embed(smiles: str) -> str:
    """One frame of an XYZ file, in Å: the force field's geometry, with the SMILES as comment."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if EmbedMolecule(molecule, randomSeed=SEED) != 0:
        raise RuntimeError(f"{smiles}: RDKit finds no geometry")
    UFFOptimizeMolecule(molecule, maxIters=2000)
    atoms = zip(molecule.GetAtoms(), molecule.GetConformer().GetPositions(), strict=True)
    lines = [f"{atom.GetSymbol()} {x:.3f} {y:.3f} {z:.3f}" for atom, (x, y, z) in atoms]
    return "\n".join([str(len(lines)), smiles, *lines]) + "\n"


if __name__ == "__main__":
    MOLECULES.write_text("".join(embed(smiles) for group in SMILES for smiles in group.split()))
