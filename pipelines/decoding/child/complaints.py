"""What the decoders complain of: both write it to standard error, a pipe that this process reads too.

It is how damage is noticed under decord, which hides it, and what its parent reads once the child is gone.
"""

import os

HARMLESS = (
    b"[buffer ",  # a picture of another size or range: converted
    b"[swscaler ",  # a pixel format with an old name
    b"mmco: unref short failure",  # after a seek, a picture is let go of that was never needed
)
"""What is said of sound files too."""


class Complaints:
    """The read end of the pipe, which never blocks; what did not fit into it was lost, and is not missed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def count(self) -> int:
        """Lines since the last call."""
        said = bytearray()
        try:
            while part := os.read(self._descriptor, 1 << 16):
                said += part
        except BlockingIOError:
            pass
        return sum(not any(sign in line for sign in HARMLESS) for line in said.splitlines())

    forget = count
