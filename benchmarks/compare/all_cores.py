"""A build on all cores, in a process of its own: its thread pools then end before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import common

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def call(function: Callable[..., Any], *args: Any) -> None:
    """``function(*args)``, a function at the top of its module and arguments that pickle (a corpus is best not read yet)."""
    before = {pool: os.environ.get(pool) for pool in POOLS}
    os.environ.update(dict.fromkeys(POOLS, str(common.ALL_CORES)))
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(function, *args).result()
    finally:
        for pool, value in before.items():
            if value is None:
                del os.environ[pool]
            else:
                os.environ[pool] = value
