"""The file system that a SQLite file is on: its kind, and the file's mode and owner."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..._support.log import log
from .._errors import BrokerRefusedError

#: File systems that several hosts, or a host and its virtual machines, can share. They lack the
#: locks or the shared memory of WAL mode, which works on one host only: https://sqlite.org/wal.html
_SHARED = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "drvfs", "fakeowner", "fuse", "gfs2"),
        *("glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs"),
        *("pvfs2", "smb3", "smbfs", "v9fs", "vboxsf", "virtiofs", "vmhgfs"),
    }
)
_FUSE = "fuse."  # the beginning of the types of file systems that programs provide
_LOCAL = frozenset({"fuse.fuse-overlayfs"})  # the root of containers without a privileged daemon
#: The bits of a mode that let others read or change a file, and the user of this process; Windows
#: has neither.
_OTHERS = stat.S_IRWXO | stat.S_IRWXG if os.name == "posix" else 0
_user: Callable[[], int] = getattr(os, "geteuid", lambda: 0)
_MOUNTS = Path("/proc/self/mounts")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # spaces, tabs, line feeds and backslashes of mount points


def resolved(path: str) -> Path:
    """Return the place of a file or of a missing file, with all symbolic links followed."""
    return Path(os.path.realpath(path))


def check(place: Path) -> None:
    """Refuse a place that is on a file system without WAL mode, where that can be found out.

    Args:
        place: The resolved path.

    Raises:
        BrokerRefusedError: The place is on such a file system.
    """
    with suppress(OSError):  # Linux only
        if kind := shared_file_system(str(place), os.fsdecode(_MOUNTS.read_bytes())):
            raise BrokerRefusedError(
                f"{place} is on a network or shared file system ({kind}), which SQLite's WAL mode "
                f"does not support"
            )


def shared_file_system(path: str, mounts: str) -> str | None:
    """Return the type of the network or shared file system that a path is on, or `None`.

    Args:
        path: The resolved path.
        mounts: The content of Linux's `/proc/self/mounts`.
    """
    longest, found = "", ""
    for line in filter(None, mounts.split("\n")):  # other separators may be parts of names
        _, point, kind, *_ = line.split(" ")
        point = _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), point)
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(longest):  # a later mount hides earlier ones
            longest, found = point, kind
    is_shared = found in _SHARED or (found.startswith(_FUSE) and found not in _LOCAL)
    return found if is_shared else None


def create(place: Path) -> None:
    """Create an empty file with mode 0600; SQLite creates its other files with the same mode.

    A warning is logged for a file that exists, if other users can read or change the jobs.

    Args:
        place: The resolved path: SQLite would follow a symbolic link, and choose the mode itself.
    """
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        _warn(place)


def _warn(place: Path) -> None:
    found = place.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, _user()):
        log(
            logging.WARNING,
            "%s belongs to another user (%d), which can change the jobs that run here",
            *(place, found.st_uid),
        )
    if stat.S_ISREG(found.st_mode) and mode & _OTHERS:
        log(
            logging.WARNING,
            "%s has mode %04o: other users can read or change the jobs; chmod 600 prevents that",
            *(place, mode),
        )


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, or `None` if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
