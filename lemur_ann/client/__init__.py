"""An index that a service has, used as one that is here: :func:`lemur_ann.connect`, with the extra ``lemur_ann[client]``.

``wire.py`` makes requests and reads answers, ``calls.py`` says which requests make a call and when one is sent again, and
``remote.py`` sends them, with threads or with coroutines.
"""

from lemur_ann.client.remote import AsyncRemoteIndex, RemoteIndex, connect, connect_async
from lemur_ann.client.wire import About, HitsWithColumns, is_in

__all__ = ["About", "AsyncRemoteIndex", "HitsWithColumns", "RemoteIndex", "connect", "connect_async", "is_in"]
