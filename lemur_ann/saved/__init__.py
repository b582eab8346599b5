"""An index on disk: its files, the versions that they make, and the folder that one writer changes.

What stands here is for those who keep the files of an index elsewhere too, as :mod:`lemur_ann.adapters.ray` does.
"""

from lemur_ann.arrays import in_place_of
from lemur_ann.saved.storage import (
    LOCK,
    MANIFEST,
    NAMES,
    check_replaceable,
    describe,
    is_file_name,
    is_own,
    remove,
    sync,
    sync_parents,
    written_manifest,
)

__all__ = [
    "LOCK",
    "MANIFEST",
    "NAMES",
    "check_replaceable",
    "describe",
    "in_place_of",
    "is_file_name",
    "is_own",
    "remove",
    "sync",
    "sync_parents",
    "written_manifest",
]
