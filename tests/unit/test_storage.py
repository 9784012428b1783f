"""What a disk refuses: found before the work where it can be, and said with the disk's own reason."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.disks import read_only, small_disk
from toolkit.cli import verbs
from toolkit.doctor import report as doctor
from toolkit.errors import StorageError
from toolkit.storage import HERE, RUN, Remedy, storage_errors, why_unwritable, write_together


@pytest.mark.parametrize(
    ("number", "what", "expected", "do"),
    [
        (errno.ENOSPC, "No space left on device", "room on the disk", RUN.full),
        (errno.EROFS, "Read-only file system: a/x", "a place this user may write to", RUN.closed),
        (errno.EACCES, "Permission denied: a/x", "a place this user may write to", RUN.closed),
        (errno.ENOTDIR, "Not a directory: a/x", "a place this user may write to", RUN.closed),
        (errno.EIO, "Input/output error: a/x", "a disk that works", RUN.closed),
    ],
)
def test_the_message_has_the_disks_own_reason(number: int, what: str, expected: str, do: str) -> None:
    with pytest.raises(StorageError) as caught, storage_errors("saving", Path("a")):
        raise OSError(number, "said by Python", "a/x")
    assert (caught.value.what, caught.value.expected, caught.value.do) == (f"saving in a failed: {what}", expected, do)
    with pytest.raises(StorageError) as caught, storage_errors("saving", Path("a"), Remedy("less", "elsewhere")):
        raise RuntimeError(f"I/O error: {number} (os error {number})")  # as safetensors says it
    assert caught.value.do == ("less" if number == errno.ENOSPC else "elsewhere")


def test_what_is_no_matter_of_the_disk_stays_what_it_is() -> None:
    with pytest.raises(FileNotFoundError), storage_errors("saving", Path("a")):
        Path("nowhere/x").read_text()


def test_a_place_that_takes_no_file_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert why_unwritable(tmp_path) == why_unwritable(tmp_path / "a/b") == ""
    assert why_unwritable(tmp_path / "file/a") == why_unwritable(tmp_path / "file") == f"{tmp_path}/file is a file"
    assert why_unwritable(tmp_path / "link/a") == f"{tmp_path}/link is a link to {tmp_path}/gone, which is not there"
    assert why_unwritable(tmp_path / ("n" * 300)).endswith("cannot be written to (File name too long)")
    assert len(list(tmp_path.iterdir())) == 2
    with read_only(tmp_path / "disk") as disk:
        assert why_unwritable(disk / "a") == f"{disk} cannot be written to (Read-only file system)"
    with small_disk(tmp_path / "full", 4096) as disk:
        (disk / "all").write_bytes(bytes(4096))
        assert why_unwritable(disk) == f"{disk} cannot be written to (No space left on device)"


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    one, other = tmp_path / "one/x", tmp_path / "other/y"
    write_together({one: "1", other: "2"})
    assert (one.read_text(), other.read_text()) == ("1", "2")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        write_together({one: "3", tmp_path / "file/z": "4"})
    assert one.read_text() == "1" and list(one.parent.iterdir()) == [one]


def test_verbs_that_write_into_a_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with read_only(tmp_path / "disk") as disk, monkeypatch.context() as inside:
        inside.chdir(disk)
        assert verbs.main(["config", "--write"]) == 2
        said = capsys.readouterr().err
        assert f"error: nothing can be written to ds_configs/ of {disk}: . cannot be written to (Read-only" in said
        inside.setattr(doctor, "_findings", lambda _: [])
        inside.setenv("NCCL_DEBUG", "INFO")
        assert verbs.main(["doctor", "--write-env"]) == 1
        said = capsys.readouterr().err
        assert f"error: --write-env in {disk} failed: Read-only file system: {disk}/.deepspeed_env\n" in said
        assert f"do this:  {HERE.closed}" in said
