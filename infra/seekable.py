"""The position in a file whose bytes come from elsewhere than the operating system."""

import io


class Seekable(io.RawIOBase):
    """A file of `size` bytes, to be read from its position on: how is up to who derives from it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position
