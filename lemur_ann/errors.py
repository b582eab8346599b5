"""The errors that built-in types do not cover."""


class NotFitted(RuntimeError):
    """The operation needs a learned map, and ``fit`` has not run."""


class CorruptIndex(ValueError):
    """A file of a saved index is missing, truncated, altered or of a newer format."""


class IndexLocked(RuntimeError):
    """The index is open for writing elsewhere, in this process or in another; or whoever had it open has lost it.

    It is lost where its folder, its lock or its manifest were replaced by others. Nothing was written then.
    """
