"""A file is whole or not there, whatever the disk does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from safe_o2o import files
from safe_o2o.errors import StorageError
from safe_o2o.files import atomic_directory, temporary_name, temporary_owner, write_atomic
from tests.data_fakes import files_in


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert files_in(tmp_path) == ["a.bin"]


def test_without_overwrite_an_existing_file_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old", overwrite=False)
    with pytest.raises(StorageError, match="file exists"):
        write_atomic(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["a.bin"]


def test_file_systems_without_hard_links_get_the_same_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_atomic(tmp_path / "a", b"old", overwrite=False)
    with pytest.raises(StorageError, match="file exists"):
        write_atomic(tmp_path / "a", b"new", overwrite=False)
    assert files_in(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_refusing_disk_is_one_line_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stage: str
) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, stage, refuse)
        with pytest.raises(StorageError) as caught:
            write_atomic(path, b"new")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert os.strerror(code).lower() in str(caught.value) and caught.value.todo
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        write_atomic(tmp_path / "missing" / "a", b"x")


def test_the_kernels_own_refusal_leaves_nothing(tmp_path: Path) -> None:
    """A real file size limit, so that the write itself is cut short half way."""
    script = f"""
        import resource
        from safe_o2o.errors import StorageError
        from safe_o2o.files import write_atomic
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_atomic({str(tmp_path / "big")!r}, bytes(1_000_000))
        except StorageError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "file too large" in done.stdout
    assert files_in(tmp_path) == []


def test_a_full_file_system_leaves_nothing(tmp_path: Path) -> None:
    """A real tmpfs of 64 KiB, where this user may mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        write_atomic(tmp_path / "small", bytes(1000))
        with pytest.raises(StorageError, match="no space left on device; free some space"):
            write_atomic(tmp_path / "big", bytes(1_000_000))
        with (
            pytest.raises(StorageError, match="no space left"),
            atomic_directory(tmp_path / "folder") as folder,
        ):
            (folder / "big").write_bytes(bytes(1_000_000))
        assert files_in(tmp_path) == ["small"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "bundles" / "v000001") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"a")
        assert not (tmp_path / "bundles" / "v000001").exists()
    assert files_in(tmp_path) == [
        "bundles",
        "bundles/v000001",
        "bundles/v000001/sub",
        "bundles/v000001/sub/a",
    ]


def test_a_folder_whose_making_fails_is_gone_and_the_error_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "v1") as folder:
        (folder / "a").write_bytes(b"a")
        raise KeyboardInterrupt
    assert files_in(tmp_path) == []


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    with pytest.raises(StorageError, match="file exists"), atomic_directory(tmp_path / "v1"):
        pytest.fail("the body must not run")
    assert files_in(tmp_path) == ["v1"]


def test_temporary_names_tell_their_process(tmp_path: Path) -> None:
    name = temporary_name(tmp_path / "episode_000000.safetensors")
    assert name.parent == tmp_path
    assert temporary_owner(name) == os.getpid()
    assert temporary_owner(tmp_path / "episode_000000.safetensors") is None
    assert temporary_owner(tmp_path / ".hidden") is None
