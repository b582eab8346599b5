"""An index behind a network: `lemur-ann serve`. What it needs beside the package is the extra ``lemur_ann[serve]``.

``hosted.py`` is one index with its encoder, its queue of searches and its changes; ``app.py`` speaks HTTP for any number of
them. ``processes.py`` starts one process that writes, and others that read.
"""
