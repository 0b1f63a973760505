"""No file is un-pickled, and none is run: what people and machines exchange is data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from search.documents import _Loader

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "storage", "search", "dashboards", "deploy", "tools")

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "mlflow.pytorch.load_model",
    "mlflow.pyfunc.load_model",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "eval",
    "exec",
}
LOADER = "_Loader"
"""Our own for YAML, which is a safe one."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] in MODULES or name in CALLS)
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called in CALLS:
            yield called
        if called == "yaml.load" and [dotted(word) for word in node.args[1:]] != [LOADER]:
            yield called
        for keyword in node.keywords:
            wanted = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not wanted:
                yield f"{called}(allow_pickle)"
            if keyword.arg == "weights_only":
                yield f"{called}(weights_only)"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_un_pickles(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert {str(file): found for file in files if (found := list(faults(file.read_text())))} == {}


def test_our_yaml_loader_makes_plain_values_alone() -> None:
    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getcwd []", _Loader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(file, weights_only=True)",
        "from torch import load\nimport cloudpickle as c",
        "from torch.hub import load\nfrom torch import load as torch_load",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=trust)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(faults(source))
