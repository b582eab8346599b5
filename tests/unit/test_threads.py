"""What threads share, and what a container allows."""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest

from lemur_ann import LemurIndex, arrays, validate


def test_a_change_returns_where_no_thread_is_left(tmp_path, monkeypatch):
    index = LemurIndex.open(tmp_path / "index", compact_at=0.3)
    index.add(np.ones((3000, 1, 4), np.float32), ids=list(range(3000)))

    def none_left(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        index.delete(list(range(1500)))
    assert len(index) == 1500
    index.close()
    LemurIndex.open(tmp_path / "index").close()


def test_none_keeps_to_the_quota_of_a_group_and_of_those_above(tmp_path):
    group = tmp_path / "fs" / "a" / "b"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "mountinfo").write_text(f"1 0 0:1 / {tmp_path}/fs rw - cgroup2 cgroup rw\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("350000 100000\n")
    assert validate._Quota(tmp_path).cores() == 3
    (group / "cpu.max").write_text("50000 100000\n")
    assert validate._Quota(tmp_path).cores() == 1


def test_rows_are_written_before_they_are_mapped(tmp_path, monkeypatch):
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    np.testing.assert_array_equal(arrays.mapped_rows([rows[:2], rows[2:]], (4, 3), np.float16, tmp_path), rows)

    def full(descriptor, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays, "_reserve", full)
    with pytest.raises(OSError, match="directory= names another folder"):
        arrays.mapped_rows([rows], (4, 3), np.float16, tmp_path)
