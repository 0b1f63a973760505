"""The registered model. MLflow runs this file to load it, so nothing is unpickled."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from search.promote.model_signature import predict_table
from trainer.inference.ensemble import Ensemble


class RegisteredEnsemble(PythonModel):
    """Predicts energies of structures in a table, or in files that a table names."""

    def load_context(self, context: Any) -> None:
        """Read the networks."""
        self._ensemble = Ensemble.open(context.artifacts["ensemble"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Return one row per structure: see :func:`search.promote.model_signature.predict_table`."""
        return predict_table(self._ensemble, model_input)


set_model(RegisteredEnsemble())
