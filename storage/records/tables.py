"""The tables of the records, in one SQL database together with Optuna's tables.

All times are seconds since 1970-01-01 UTC by the clock of the database (see :class:`now`), except
``anitune_metrics.time_ms``, which is by the clock of the worker.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    case,
    false,
    func,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from storage.errors import DatabaseError

PREFIX = "anitune_"
VERSION_TABLE = "anitune_alembic_version"


class PlainJSON(TypeDecorator[Any]):
    """A JSON value as text, the same on every database; NaN and infinity are kept, as in Python's json."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        try:
            return None if value is None else json.loads(value)
        except (ValueError, RecursionError):
            raise DatabaseError(
                f"a record is damaged: it is not JSON, or nested too deeply ({value[:40]!r} ...);"
                " restore the database from a backup"
            ) from None


class now(FunctionElement[float]):  # noqa: N801  (named like the SQL function)
    """Seconds since 1970-01-01 UTC by the database's clock, which workers on all machines share."""

    type = Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **_: Any) -> str:
    # PostgreSQL's now() is the time at which the transaction began, before it waited for a lock.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite autoincrements a primary key only if it is an INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")

studies = Table(
    "anitune_studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("optuna_study_id", Integer, nullable=False),
    Column("config", PlainJSON, nullable=False),
    Column("other_files", PlainJSON),  # lists of files with the same data, the latest list first
    Column("budget_trials", Integer),
    Column("budget_seconds", Double),
    Column("budget_epochs", Integer),
    Column("budget_until_no_gain", Boolean, nullable=False, server_default=false()),
    Column("gain", PlainJSON),  # the fields of ExpectedGain; null: not estimated
    Column("finalists_among", Integer),  # number of trials when finalists were last chosen; null: it has none
    Column("asked", PlainJSON),  # the limits in the study file when it was last read
    Column("facts", PlainJSON, nullable=False),
    Column("state", String(16), nullable=False, server_default="open"),  # see storage.lifecycle
    Column("priority", Integer, nullable=False, server_default="0"),  # higher is served first
    Column("created_at", Double, nullable=False),
    Column("mlflow_experiment_id", String(64)),
    Column("mlflow_run_id", String(64)),
)

trials = Table(
    "anitune_trials",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.id), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("optuna_trial_id", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # running, paused, complete, pruned, failed
    Column("attempt", Integer, nullable=False),  # the latest
    Column("config", PlainJSON),
    Column("params", PlainJSON),
    Column("planned_epochs", Integer),
    Column("value", Double),  # best validation MAE, kcal/mol
    Column("reason", Text),
    Column("summary", PlainJSON, nullable=False),
    Column("tags", PlainJSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("told", Boolean, nullable=False),  # whether the result is synced to Optuna
    Column("mlflow_run_id", String(64)),
    # Digest of everything that determines the result, except the trial's own seed; null: not compared
    Column("settings", String(64)),
    Column("same_as", Integer),  # number of the original with equal settings, whose result it takes
    Column("replicate_of", Integer),  # number of the trial whose configuration it trains with another seed
)
Index("ix_anitune_trials_settings", trials.c.study_id, trials.c.settings)
Index("ix_anitune_trials_best", trials.c.study_id, trials.c.state, trials.c.value, trials.c.number)
Index(  # running trials and those pending sync to Optuna: few, however long the study
    "ix_anitune_trials_untold",
    trials.c.study_id,
    trials.c.number,
    sqlite_where=trials.c.told.is_(False),
    postgresql_where=trials.c.told.is_(False),
)

attempts = Table(
    "anitune_attempts",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("token", String(32), nullable=False, unique=True),
    Column("worker", PlainJSON, nullable=False),  # the fields of WorkerInfo
    Column("started_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("ended_at", Double),
    Column(
        "outcome", String(16)
    ),  # paused, complete, pruned, failed, handed_back, crashed, expired; null: not ended
    Column("reason", Text),
    Column("epochs", Integer, nullable=False),  # trained in this attempt
    Column("last_epoch", Integer, nullable=False),  # reached in this attempt; 0: none
    ForeignKeyConstraint(["study_id", "number"], [trials.c.study_id, trials.c.number]),
)
#: Joins a trial with its latest attempt.
of_latest_attempt = (
    (attempts.c.study_id == trials.c.study_id)
    & (attempts.c.number == trials.c.number)
    & (attempts.c.attempt == trials.c.attempt)
)

metrics = Table(
    "anitune_metrics",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String(250), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Double),  # null: NaN, which SQLite cannot hold
    Column("time_ms", BigInteger, nullable=False),  # since 1970-01-01 UTC, by the worker's clock
    Column("attempt", Integer, nullable=False),
    ForeignKeyConstraint(["study_id", "number"], [trials.c.study_id, trials.c.number]),
)

rungs = Table(
    "anitune_rungs",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),  # best validation MAE so far, kcal/mol
    Column(
        "earlier_marks", PlainJSON, nullable=False
    ),  # the pruner's attributes of the trial, before its decision
    Column("stop", Boolean),  # null: not decided yet
    ForeignKeyConstraint(["study_id", "number"], [trials.c.study_id, trials.c.number]),
)

artifacts = Table(
    "anitune_artifacts",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("path", String(250), primary_key=True),  # within the run, such as plots/loss.png
    Column("position", Integer, nullable=False),  # order within the trial, from 1
    Column("digest", String(64), nullable=False),  # sha256 of the content, hexadecimal
    Column("size", BigInteger, nullable=False),  # bytes
    Column("attempt", Integer, nullable=False),
    ForeignKeyConstraint(["study_id", "number"], [trials.c.study_id, trials.c.number]),
)

checkpoints = Table(  # the last checkpoint of each running trial, where machines share no folder
    "anitune_checkpoints",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),  # the one that saved it
    Column("epoch", Integer, nullable=False),  # epochs trained by then
    Column("digest", String(64), nullable=False),  # sha256 of the content, hexadecimal
    Column("size", BigInteger, nullable=False),  # bytes
    ForeignKeyConstraint(["study_id", "number"], [trials.c.study_id, trials.c.number]),
)

blobs = Table(  # artifacts and checkpoints, if they are stored in the database
    "anitune_blobs",
    metadata,
    Column("digest", String(64), primary_key=True),  # sha256 of the content, hexadecimal
    Column("size", BigInteger, nullable=False),  # bytes
    Column("created_at", Double, nullable=False),
)

blob_parts = Table(
    "anitune_blob_parts",
    metadata,
    Column("digest", String(64), ForeignKey(blobs.c.digest, ondelete="CASCADE"), primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),  # from 0
    Column("content", LargeBinary, nullable=False),
)

artifact_place = Table(  # one row; no row: artifacts are in the home folder. See storage.blobs.place
    "anitune_artifact_place",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("kind", String(16), nullable=False),  # folder, database
    Column("folder", Text),  # the path on the first worker's machine
)

identity = Table(  # one row
    "anitune_identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("mark", String(32), nullable=False),  # ownership marker of its folders: see storage.ownership
)

outbox = Table(
    "anitune_outbox",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.id), nullable=False),
    Column("number", Integer),  # null: about the study itself
    Column("kind", String(16), nullable=False),  # see storage.tracking.outbox
    Column("payload", PlainJSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("delivered_at", Double),
    Column("parked", Text, key="rejected"),  # why the tracking server rejected it for good
)
Index(
    "ix_anitune_outbox_open",
    outbox.c.study_id,
    outbox.c.id,
    sqlite_where=outbox.c.delivered_at.is_(None),
    postgresql_where=outbox.c.delivered_at.is_(None),
)

relays = Table(
    "anitune_relays",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.id), primary_key=True),
    Column("token", String(32), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("last_error", Text),
    Column("address", Text),  # tracking server, without a password; null: older program
)

workers = Table(
    "anitune_workers",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("worker", PlainJSON, nullable=False),  # the fields of WorkerInfo
    Column("gpu", String(250)),  # pinned device, as in CUDA_VISIBLE_DEVICES; null: not pinned
    Column("study", String(100)),  # name; null: any
    Column("structures", Integer),  # of the training set; null: not known yet
    Column("started_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("lease_until", Double, nullable=False),
)


promotions = Table(
    "anitune_promotions",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.id), nullable=False, index=True),
    Column(
        "plan", PlainJSON, nullable=False
    ),  # the candidates' numbers, runs and members: see search.promote
    Column("worker", PlainJSON, nullable=False),  # the fields of WorkerInfo
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),  # null: a new start continues it
    Column("results", PlainJSON),  # of the candidates on the folds; null: not all trained yet
    Column("choice", Integer),  # number of the chosen trial
    Column("reason", Text),  # why this trial was chosen
    Column("test", PlainJSON),  # errors of the ensemble on the test set; null: not evaluated yet
    Column("model_name", String(250)),  # in the registry; null: not registered yet
    Column("model_version", String(32)),
)

promotion_trainings = Table(  # also those of learning curves
    "anitune_promotion_trainings",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.id), primary_key=True),
    Column("key", String(64), primary_key=True),  # digest of everything that determines the result
    Column("number", Integer, nullable=False),  # of the trial whose settings it uses
    Column("kind", String(16), nullable=False),  # see storage.trainings
    Column("run", Integer, nullable=False),  # index within the kind, from 0
    Column("value", Double, nullable=False),  # best validation MAE, kcal/mol
    Column("summary", PlainJSON, nullable=False),
    Column("ended_at", Double, nullable=False),
)

promotion_failures = Table(
    "anitune_promotion_failures",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.id), primary_key=True),
    Column("key", String(64), primary_key=True),  # as in promotion_trainings
    Column("reason", Text, nullable=False),
)

learning_curves = Table(
    "anitune_learning_curves",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.id), nullable=False, index=True),
    Column("result", PlainJSON, nullable=False),  # see search.curve
    Column("ended_at", Double, nullable=False),
)

earlier_studies = Table(  # copies, made when the study was created: see storage.earlier_studies
    "anitune_earlier_studies",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.id), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),  # in the study file, from 0
    Column("name", String(100), nullable=False),
    Column("trials", Integer, nullable=False),  # with a result
    Column("facts", PlainJSON, nullable=False),  # fingerprints of its data and its split
    Column("results", PlainJSON, nullable=False),  # the best first: see search.propose.earlier
    Column("digest", String(64), nullable=False),  # sha256 of the copy, hexadecimal
)

evaluations = Table(
    "anitune_test_openings",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.id)),  # null: it was deleted
    Column("promotion_id", _RowId, ForeignKey(promotions.c.id), unique=True),
    Column("study", String(100), nullable=False),  # its name, kept after its deletion
    Column("data", String(64), nullable=False),  # with split: fingerprints that identify the test set
    Column("split", String(64), nullable=False),
    Column("number", Integer, nullable=False),  # of the evaluated trial
    Column("config", PlainJSON, nullable=False),  # of that trial
    Column("ensemble", String(64)),  # digest of its files; null: older than this column
    Column("opened_by", String(255), nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("test_mae", Double),  # of the ensemble, kcal/mol; null: no result was recorded
    Index("ix_anitune_test_openings_data", "data", "split"),
)


def seconds_spent() -> ColumnElement[float]:
    """Seconds that an attempt took: until it ended, else until now or the expiry of its lease, if earlier."""
    last_sign = case((attempts.c.lease_until < now(), attempts.c.lease_until), else_=now())
    return func.coalesce(attempts.c.ended_at, last_sign) - attempts.c.started_at
