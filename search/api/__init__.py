"""The functions behind the commands, for notebooks and programs."""

import warnings

# tqdm, which optuna and mlflow import, warns in a notebook without ipywidgets. We show progress without them.
warnings.filterwarnings("ignore", message="IProgress not found")
