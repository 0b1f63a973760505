"""Errors of the storage, in the user's words. The docstring of a class is its default message."""

from __future__ import annotations


class StorageError(Exception):
    """The storage cannot be used."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else type(self).__doc__)


class SettingsError(StorageError):
    """A setting of the storage is not usable."""


class FolderTakenError(SettingsError):
    """The folder belongs to another database."""


class DatabaseError(StorageError):
    """The database refused to read or write."""


class DatabaseUnreachableError(DatabaseError):
    """The database does not answer, or does not let us in."""


class DatabaseBusyError(DatabaseError):
    """Another process holds a lock in the database for too long."""


class SchemaTooNewError(DatabaseError):
    """The database was made by a newer program: upgrade this one."""


class SchemaTooOldError(DatabaseError):
    """The database was made by an older program: bring it up to date with `anitune migrate`."""


class ServerError(StorageError):
    """A server of this home could not be started or stopped."""


class StudyNotFoundError(StorageError):
    """There is no study of that name."""


class StudyExistsError(StorageError):
    """A study of that name exists with another configuration."""


class StudyStateError(StorageError):
    """The study is in no state for this."""


class AlreadyEvaluatedError(StorageError):
    """The test set was evaluated on before, so its error for another choice would be biased."""


class PromotionBusyError(StorageError):
    """Another process promotes this study now."""


class FactsChangedError(StorageError):
    """The study's data is not what it was when the study began."""


class LeaseLostError(StorageError):
    """Another worker has taken this trial over: nothing was written."""


class TrialClosedError(StorageError):
    """The trial was ended or deleted in the Optuna dashboard."""


class BlobMissingError(StorageError):
    """A file that the records name is not there."""


class BlobDamagedError(StorageError):
    """The content of a stored file has changed."""


class BlobWriteError(StorageError):
    """A file could not be stored."""


class ArtifactNameError(StorageError):
    """An artifact has a name that could lead out of its folder."""


class OutsideFolderError(StorageError):
    """A name leads out of the folder that it belongs to."""


class DatabaseStartingError(DatabaseUnreachableError):
    """The database starts or recovers, and lets nobody in yet."""


class TrackingUnavailableError(StorageError):
    """The tracking server does not answer: what it must be told is kept, and told later."""


class TrackingRefusedError(StorageError):
    """The tracking server will never take this."""


class ModelNotFoundError(StorageError):
    """There is no such model in the registry."""


class RelayLeaseLostError(StorageError):
    """Another relay delivers this study now."""


class RelayBusyError(StorageError):
    """A relay delivers this study now: stop its workers, and try again."""
