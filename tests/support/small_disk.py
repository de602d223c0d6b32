"""A disk of a few pages for one process; what imports this module must have no threads yet."""

import ctypes
import multiprocessing.util
import os
import shutil
import subprocess
from pathlib import Path

_PAGE = 4096


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, check=False).returncode == 0


def _mount(folder: Path, finished: Path, earlier: tuple[str, ...], pages: int) -> None:
    """Give this process a small disk of its own at `folder`, with the finished stages on it and `pages` left free."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, new_user, private = 0x00020000, 0x10000000, (1 << 18) | 16384
    user, group = os.getuid(), os.getgid()

    def check(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "no small disk")

    check(libc.unshare(new_namespace | new_user))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    check(libc.mount(b"none", b"/", None, private, None))
    check(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=64m"))
    (folder / "work").mkdir()
    (folder / "work/.lock").touch()
    for stage in earlier:
        shutil.copytree(finished / stage, folder / "work" / stage)
    free = os.statvfs(folder).f_bavail - pages
    (folder / "filler").write_bytes(bytes(free * _PAGE))


def on_small_disk(folder: Path, finished: Path, earlier: tuple[str, ...], pages: int, kept: Path) -> None:
    """Run on a disk of its own, and tell in `kept` which files were on it at the end."""
    _mount(folder, finished, earlier, pages)

    def write() -> None:
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        kept.write_text("\n".join(names))

    multiprocessing.util.Finalize(None, write, exitpriority=1)
