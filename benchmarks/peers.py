"""A virtual environment for a benchmark's peers: their pinned packages, and torch shared with ours."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent / ".venvs"


def peer_python(name: str, *requirements: str) -> str:
    """The Python of the environment `name`, made on the first call with these pinned packages.

    Packages of ours that a peer needs too (torch, DeepSpeed) are found where they are, in the same version.
    """
    folder = ROOT / name
    python, wanted = folder / "bin" / "python", "\n".join(requirements)
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    venv.create(folder, with_pip=True, clear=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    subprocess.run(command, check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return str(python)
