"""``import anitune``: the commands as functions, on a small study in extended XYZ."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner

import anitune
from dashboards.notebook import NoResultError, open_study
from search.api.display import Shown
from search.cli.main import app
from search.cli.output import leaderboard
from storage.errors import StudyNotFoundError
from storage.tracking import process
from trainer.errors import ConfigError, DataError

EXAMPLE = Path(__file__).parents[2] / "examples" / "small-molecules.extxyz"

SETTINGS: dict[str, Any] = {
    "training": {"epochs": 2, "hidden": [8], "device": "cpu"},
    "space": {"batch_size": {"choices": [32, 64]}, "activation": {"choices": ["silu", "celu"]}},
    "pruner": {"kind": "none"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a person: their data, and ``anitune-data`` beside it."""
    folder = tmp_path_factory.mktemp("notebook")
    frames = ase.io.read(EXAMPLE, index=":")
    ase.io.write(folder / "water.extxyz", [atoms for atoms in frames if len(atoms) < 5])
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("ANITUNE_HOME", "ANITUNE_STORAGE_URL", "ANITUNE_TRACKING_URI"):
            patch.delenv(variable, raising=False)
        patch.chdir(folder)
        yield folder
    for relay in process._started:
        relay.kill()
        relay.wait(60)


def run(trials: int = 2, **settings: Any) -> anitune.Study:
    return anitune.run("tiny", data="water.extxyz", trials=trials, pack=1, **(SETTINGS | settings))


@pytest.fixture(scope="module")
def study(folder: Path) -> anitune.Study:
    return run()


def test_importing_it_costs_nothing() -> None:
    heavy = ("torch", "optuna", "mlflow", "sqlalchemy", "pandas", "plotly", "matplotlib", "ase", "h5py")
    code = f"import sys, anitune; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_a_study_of_a_file_of_ase_in_one_call(study: anitune.Study) -> None:
    assert repr(study).startswith("study tiny: 2 complete, best ")
    assert study.best.value == study.frame()["val_mae_kcalmol"].min()
    assert study.best.config["hidden"] == [8]
    assert study.best.params["batch_size"] in (32, 64)


def test_the_study_is_that_of_the_commands(study: anitune.Study, folder: Path) -> None:
    shown = CliRunner().invoke(app, ["study", "show", "tiny"])
    assert shown.exit_code == 0, shown.output
    assert repr(study.leaderboard()) in shown.stdout
    (folder / "tiny.yaml").write_text(
        "name: tiny\ndata: {files: [water.extxyz]}\ntraining: {epochs: 2, hidden: [8], device: cpu}\n"
        "space: {batch_size: {choices: [32, 64]}, activation: {choices: [silu, celu]}}\n"
        "pruner: {kind: none}\nlimits: {trials: 2}\n"
    )
    assert repr(anitune.create("tiny.yaml")) == repr(study) == repr(anitune.open("tiny"))
    assert study.frame().equals(open_study("tiny").trials())


def test_run_again_it_goes_on(study: anitune.Study) -> None:
    before = study.frame()
    assert run().frame().equals(before)
    assert anitune.run("tiny", pack=1).frame().equals(before)
    assert len(run(trials=3).frame()) == 3


def test_tables_show_themselves_in_a_terminal_and_in_jupyter(study: anitune.Study) -> None:
    board = study.leaderboard()
    html = board._repr_html_()
    assert html.count("<tr") == 1 + len(study.frame())
    for text in (repr(board), html, study._repr_html_()):
        assert f"{study.best.value:.3f}" in text
        assert f"384-8-1 {study.best.config['activation']}" in text


def test_text_of_others_is_no_html() -> None:
    shown = Shown("a <script> and \\[b]", leaderboard([]))
    assert shown._repr_html_().startswith("<div>a &lt;script&gt; and [b]</div><table>")


def test_figures_show_themselves_without_nbformat(study: anitune.Study) -> None:
    figure = study.figure("cost")
    assert repr(figure).startswith("Error against parameters")
    bundle = figure._repr_mimebundle_()
    assert bundle.keys() == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    assert len(bundle["application/vnd.plotly.v1+json"]["data"]) == len(figure.data)
    figure.update_layout(height=700)
    assert figure._repr_mimebundle_()["application/vnd.plotly.v1+json"]["layout"]["height"] == 700
    with pytest.raises(NoResultError, match="there is no figure 'costs'"):
        study.figure("costs")


def test_the_best_network_predicts_atoms_and_files(study: anitune.Study, folder: Path) -> None:
    model, water = study.best.model, molecule("H2O")
    ase.io.write("two.xyz", [water, molecule("NH3")])
    in_hartree = model.predict(water).energies
    both = model.predict(["two.xyz", water], unit="eV")
    np.testing.assert_allclose(both.energies[[0, 2]], in_hartree[0] * 27.211386245988, rtol=1e-6)
    assert list(both.frame()["formula"]) == ["H2O", "H3N", "H2O"]
    assert "H2O (two.xyz, 0)" in repr(both)
    water.calc = model.calculator()
    assert water.get_potential_energy() == pytest.approx(both.energies[0], rel=1e-6)
    shown = CliRunner().invoke(app, ["predict", str(study.best.model_file), "two.xyz", "--unit", "eV"])
    assert f"{both.energies[0]:.4f}" in shown.stdout
    assert anitune.predict(study.best.model_file, water).energies == in_hartree
    water.pbc = True
    with pytest.raises(DataError, match=r"structure 0 \(from 0\): it is periodic"):
        model.predict(water)
    with pytest.raises(ConfigError, match="unit: 'ev' is not one of hartree, kcal/mol, eV"):
        model.predict(molecule("H2O"), unit="ev")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("other", {"data": "water.extxyz"}, "study 'other': limits: set trials, hours or epochs"),
        ("other", {"trials": 2, "dat": "water.extxyz"}, "study 'other': dat"),
        ("other", {"trials": 0}, "limits.trials"),
        ("tiny.yaml", {"trials": 2}, "tiny.yaml: give either a file, or a name with settings"),
    ],
)
def test_wrong_settings_are_said_in_a_line(
    name: str, settings: dict[str, Any], said: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^[^\n]*{said}[^\n]*$"):
        anitune.create(name, **settings)


def test_a_program_does_not_run_again_in_each_process_of_a_training(folder: Path) -> None:
    """Although it is not guarded by the name of its module."""
    arguments = f"'program', data='water.extxyz', trials=2, pack=2, **{SETTINGS!r}"
    (folder / "program.py").write_text(
        f"import anitune\nprint('it begins')\nprint(anitune.run({arguments}))\n"
    )
    ended = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert "study program: 2 complete" in ended.stdout, ended.stderr
    assert (ended.stdout + ended.stderr).count("it begins") == 1


def test_a_study_that_is_not_there(folder: Path) -> None:
    for call in (anitune.open, anitune.run):
        with pytest.raises(StudyNotFoundError, match="'nosuch'"):
            call("nosuch")


def test_a_study_without_a_complete_trial_has_no_best(folder: Path) -> None:
    waiting = anitune.create("waiting", data=["water.extxyz"], limits={"trials": 1})
    assert repr(waiting) == "study waiting: no trial yet"
    with pytest.raises(NoResultError, match="no trial is complete yet"):
        _ = waiting.best


def test_one_training_without_a_search(folder: Path) -> None:
    settings = {"data": Path("water.extxyz"), "training": SETTINGS["training"]}
    network = anitune.train("alone", **settings)
    assert network.folder == folder / "anitune-data" / "trainings" / "alone"
    assert f"validation MAE  {network.result.best_val_mae:.3f} kcal/mol" in repr(network)
    again = anitune.train("alone", **settings)
    assert again.result.history == network.result.history
    (energy,) = network.model.predict(molecule("NH3")).energies
    assert -57 < energy < -55, "hartree"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow warns of SQLAlchemy, and of its own type hints
def test_a_study_is_promoted(study: anitune.Study) -> None:
    promoted = study.promote(top=1, seeds=1, folds=2, ensemble=2)
    assert promoted.trial == study.best.number
    assert "chosen" in repr(promoted)
    assert "<td>chosen</td>" in promoted._repr_html_()
    predicted = promoted.model.predict(molecule("H2O"))
    assert predicted.uncertainties[0] > 0
    assert anitune.predict("models:/tiny@champion", molecule("H2O")).energies == predicted.energies


def test_its_settings_are_those_of_the_study_file(folder: Path) -> None:
    file = folder / "same.yaml"
    file.write_text("name: same\ndata: {files: [water.extxyz]}\nlimits: {hours: 2}\ntraining: {epochs: 7}\n")
    anitune.create(file)
    anitune.create("same", data={"files": ["water.extxyz"]}, hours=2, training={"epochs": 7})


def test_the_learning_curve_of_a_study_shows_itself(study: anitune.Study) -> None:
    curve = study.learning_curve(top=1, seeds=2)
    assert [each["trial"] for each in curve.values["configurations"]] == [study.best.number]
    assert "Twice the data: with" in repr(curve)
    assert "<th>larger network</th>" in curve._repr_html_()
    assert repr(curve.figure).startswith("Error against the size of the training set")
