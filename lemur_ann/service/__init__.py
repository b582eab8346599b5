"""An index behind a network: `lemur-ann serve`. What it needs beside the package is the extra ``lemur_ann[serve]``.

``hosted.py`` is one index with its encoder, its queue of searches and its changes; ``service.py`` has any number of
them, and ``app.py`` speaks HTTP for it, ``flight.py`` Arrow Flight and ``agents.py`` the Model Context Protocol.
``processes.py`` starts one process that writes, and others that read.
"""
