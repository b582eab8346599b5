"""LEMUR in shards on Ray: ``pip install lemur_ann[ray]``. The interface of LemurIndex, over actors.

::

    from lemur_ann.adapters.ray import ShardedLemurIndex

    index = ShardedLemurIndex("my_index", num_shards=4)  # or s3://bucket/my_index
    index.fit("documents/", queries=training_queries)  # a folder of Parquet files, read by tasks
    hits = index.search(query, k=10)

Each shard is a LemurIndex on a directory of its own, with every change on disk when the call returns.
"""

try:
    import fsspec  # noqa: F401
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError("lemur_ann.adapters.ray needs ray and fsspec: pip install lemur_ann[ray]") from error

from .errors import Overloaded, ShardUnavailable
from .hits import ShardedHits
from .index import ShardedLemurIndex

__all__ = ["Overloaded", "ShardUnavailable", "ShardedHits", "ShardedLemurIndex"]
