"""A multi-vector index for late-interaction retrieval: learned single-vector candidates, exact MaxSim rerank."""

try:
    from lemur_ann._core import version as __version__
except ImportError as error:  # a source tree without the compiled extension, or a broken build
    raise ImportError(
        "lemur_ann's compiled extension lemur_ann._core cannot be imported. Install the package with 'pip install .' and "
        "run Python outside the source tree."
    ) from error

from lemur_ann import maxsim
from lemur_ann.client import AsyncRemoteIndex, RemoteIndex, connect, connect_async
from lemur_ann.documents.pooling import pool
from lemur_ann.encoder import LemurEncoder
from lemur_ann.errors import CorruptIndex, IndexLocked, NotFitted
from lemur_ann.hits import Hits
from lemur_ann.index import LemurIndex
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.insight.health import Health
from lemur_ann.insight.sizing import plan
from lemur_ann.saved import storage as storage  # for whoever must sign a folder by hand: `from lemur_ann import storage`
from lemur_ann.texts import TextIndex

__all__ = [
    "AsyncRemoteIndex",
    "CorruptIndex",
    "Evaluation",
    "Health",
    "Hits",
    "IndexLocked",
    "LemurEncoder",
    "LemurIndex",
    "NotFitted",
    "RemoteIndex",
    "TextIndex",
    "__version__",
    "connect",
    "connect_async",
    "maxsim",
    "plan",
    "pool",
]
