"""A Python of which the decoding children misbehave: a virtual environment with a fault inside.

It has everything that the Python of the tests has, and a `sitecustomize` that replaces a call of a decoder
once a process turns out to be a decoding child. So a real child really hangs, crashes, or takes all memory,
whether it was started by a test or by a worker of Ray; nothing of the house knows of it.
"""

import contextlib
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

SITE = """\
import sys

if any("pipelines.decoding.child" in word for word in sys.orig_argv):
    import fault
"""
PRELUDE = """\
import ctypes, os, re, time
import av, decord

def marked(path, mark):
    return mark in os.path.basename(os.readlink(path))

"""
ON_OPEN = """\
def open_or_fail(path, *args, open=av.open, **options):
    if marked(path, {mark!r}):
        {action}
    return open(path, *args, **options)

av.open = open_or_fail
"""
BAD_DISK = """\
def pread(descriptor, num_bytes, position, pread=os.pread):
    if marked(f"/proc/self/fd/{descriptor}", "rot"):
        raise OSError(5, "Input/output error")
    return pread(descriptor, num_bytes, position)

os.pread = pread
"""
ACTIONS = {
    "hang": "ctypes.PyDLL(None).pause()  # holds the interpreter's lock, as native code does",
    "slow": "time.sleep(0.1)",
    "sleep": "time.sleep(10**6)",
    "loop": 're.match("(a+)+$", "a" * 64 + "b")  # holds the lock, and never ends',
    "crash": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "exit": "os._exit(7)",
    "rot": "raise av.error.InvalidDataError(0, 'as where a disk fails')",
    "grow": "hoard = [bytearray(64 << 20) for _ in range(10**6)]",
}
"""What a decoder does with a file whose name holds the word."""
REFUSES = """\
class Refusing:
    def __init__(self, *_, **__):
        raise decord.DECORDError("on purpose")

decord.VideoReader = Refusing
"""


def python_with_all_faults(folder: Path) -> Path:
    """Whose decoding children do what the name of a file says, if it holds a word of ACTIONS."""
    faults = [ON_OPEN.format(mark=mark, action=action) for mark, action in ACTIONS.items()]
    return _python(folder, PRELUDE + "\n".join([*faults, BAD_DISK]))


def python_without_decord(folder: Path) -> Path:
    """Whose decord refuses every file."""
    return _python(folder, PRELUDE + REFUSES)


@contextlib.contextmanager
def children_run(python: Path) -> Iterator[None]:
    """Decoding children that this process starts inside the block are of that Python."""
    ours, sys.executable = sys.executable, str(python)
    try:
        yield
    finally:
        sys.executable = ours


def _python(folder: Path, fault: str) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "sitecustomize.py").write_text(SITE)
    (packages / "fault.py").write_text(fault)
    ours = sysconfig.get_paths()["purelib"]
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return folder / "bin" / Path(sys.executable).name
