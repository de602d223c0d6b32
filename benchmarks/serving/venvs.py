"""One virtual environment a peer, made from its pinned requirements."""

import hashlib
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


class UnavailableError(Exception):
    """A peer cannot be measured here; the message says why."""


def environment(peer: str, folder: Path) -> Path:
    """Return the `bin` folder of the peer's virtual environment under `folder`, made anew when its pins changed.

    Raises UnavailableError with pip's last error.
    """
    requirements = PEERS / peer / "requirements.txt"
    target, wanted = folder / peer, hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = target / "requirements.sha256"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"{peer}: installing {requirements}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(target)], peer)
        _run([str(target / "bin/pip"), "install", "--quiet", "--no-deps", "-r", str(requirements)], peer)
        stamp.write_text(wanted)
    return target / "bin"


def version(peer: str, package: str) -> str:
    """Return the version that the peer's requirements pin."""
    lines = (PEERS / peer / "requirements.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.lower().startswith(f"{package.lower()}=="))


def _run(command: list[str], peer: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UnavailableError(f"{peer} cannot be installed: {errors[0] if errors else command}")
