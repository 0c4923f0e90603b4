"""Decoders that hang, loop, crash and hoard, in real children: a span ends with its class, others go on."""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from infra.errors import ClusterError, StorageError
from pipelines.config import DecodeLimits
from pipelines.decoding.decode import MOST_KILLS, Decoded, Decoder
from pipelines.source_errors import SourceError
from tests.faults.faulty_mount import FaultyMount, faulty_mount
from tests.faults.faulty_python import children_run, python_with_all_faults
from tests.faults.matrix import all_with_a_sample
from tests.faults.processes import none_left_behind
from tests.media import make_video

pytestmark = pytest.mark.faults
LIMITS = DecodeLimits(cpu_seconds=1, memory_mb=768, still_seconds=1, attempts=2)
FAULTS = {
    "hang": "decoder_hang",
    "sleep": "decoder_hang",
    "loop": "cpu_limit",
    "crash": "decoder_crash",
    "abort": "decoder_crash",
    "exit": "decoder_crash",
    "grow": "memory_limit",
}
"""What the decoder does, and the class that it is told of by."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("media") / "good.mp4", seconds=1)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with_all_faults(tmp_path_factory.mktemp("python"))


@pytest.fixture
def decoder(faulty: Path) -> Iterator[Decoder]:
    with none_left_behind(), children_run(faulty):
        started = Decoder(LIMITS)
        yield started
        started.close()


def decode(decoder: Decoder, path: Path) -> Decoded:
    with open(path, "rb") as file:
        return decode_opened(decoder, file)


def decode_opened(decoder: Decoder, file: IO[bytes]) -> Decoded:
    return decoder.decode(file, start_seconds=0.0, end_seconds=None, fps=8.0, sizes=((64, 64),))


@pytest.mark.parametrize("fault", all_with_a_sample(FAULTS, 2))
def test_a_decoder_that_misbehaves_ends_its_span_and_no_other(
    good: Path, tmp_path: Path, decoder: Decoder, fault: str
) -> None:
    poison = tmp_path / f"{fault}.mp4"
    shutil.copy(good, poison)
    before = decode(decoder, good)
    bad = decode(decoder, poison)
    after = decode(decoder, good)
    assert (before.error_class, len(before.frames)) == (None, 8)
    assert (bad.error_class, len(bad.frames)) == (FAULTS[fault], 0)
    assert bad.error
    assert (after.error_class, after.attempts) == (None, 1)
    assert after.frames.tobytes() == before.frames.tobytes()


def test_a_child_cannot_get_more_memory_nor_write_files_nor_see_secrets(
    good: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    decode(decoder, good)
    child = psutil.Process(decoder.child_pid() or 0)
    assert child.rlimit(psutil.RLIMIT_AS) == (LIMITS.memory_mb << 20,) * 2
    assert child.rlimit(psutil.RLIMIT_CPU)[0] <= LIMITS.cpu_seconds + 3
    assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert not [name for name in child.environ() if name.startswith("AWS")]


def test_children_that_somebody_kills_are_no_fault_of_the_file(
    good: Path, tmp_path: Path, decoder: Decoder
) -> None:
    """Were it a row, a machine short of memory would have failed every video in its queue for good."""
    waiting = tmp_path / "sleep.mp4"
    shutil.copy(good, waiting)
    with (
        killed_again_and_again(decoder),
        pytest.raises(ClusterError, match=f"{MOST_KILLS} times for one span"),
    ):
        decode(decoder, waiting)
    assert decode(decoder, good).error_class is None


def test_a_disk_that_fails_is_no_fault_of_the_file(good: Path, tmp_path: Path, decoder: Decoder) -> None:
    on_a_bad_disk = tmp_path / "rot.mp4"
    shutil.copy(good, on_a_bad_disk)
    with pytest.raises(StorageError, match=r"rot\.mp4 cannot be read to its end .* mend the disk"):
        decode(decoder, on_a_bad_disk)
    assert decode(decoder, good).error_class is None


@pytest.mark.parametrize(
    ("ask", "reads_ahead"), [("decode", False), pytest.param("probe", True, marks=pytest.mark.exhaustive)]
)
def test_a_mount_that_does_not_answer_is_no_fault_of_the_file(
    good: Path, tmp_path: Path, ask: str, reads_ahead: bool
) -> None:
    """Closing it waits as well, in whatever process: one that begins meanwhile, too."""
    asked = {"probe": Decoder.probe, "decode": decode_opened}
    with opened_where_reads_stall(good, tmp_path, reads_ahead=reads_ahead) as (decoder, mount, file):
        with pytest.raises(StorageError, match=r"far\.mp4 cannot be read on .*: no answer for 1 s") as said:
            asked[ask](decoder, file)
        assert not isinstance(said.value, SourceError), "whatever is mounted there would be left one by one"
        mount.serve("well")
        assert decode(decoder, good).error_class is None


def test_a_mount_that_stalls_for_a_while_costs_no_attempt(good: Path, tmp_path: Path) -> None:
    """For longer than a hang takes, and not so long that the file seems out of reach."""
    with opened_where_reads_stall(good, tmp_path, reads_ahead=False) as (decoder, mount, file):
        answers_again = threading.Timer(1.6 * LIMITS.still_seconds, mount.serve, ["well"])
        answers_again.start()
        decoded = decode_opened(decoder, file)
        answers_again.join()
    assert (decoded.error_class, len(decoded.frames), decoded.attempts) == (None, 8, 1)


@contextlib.contextmanager
def opened_where_reads_stall(
    good: Path, tmp_path: Path, *, reads_ahead: bool
) -> Iterator[tuple[Decoder, FaultyMount, IO[bytes]]]:
    """A decoder whose child was there before, and the file."""
    decoder = Decoder(LIMITS)
    decoder.start()
    with (
        none_left_behind(),
        faulty_mount(tmp_path / "mount", "far.mp4", good, reads_ahead=reads_ahead) as mount,
        open(mount.path, "rb") as file,
    ):
        mount.serve("reads stall")
        yield decoder, mount, file
        decoder.close()


@contextlib.contextmanager
def killed_again_and_again(decoder: Decoder) -> Iterator[None]:
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.3):
            if pid := decoder.child_pid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
