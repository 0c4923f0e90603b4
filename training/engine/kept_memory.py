"""What a step frees is what the next one asks for: so it stays with the process.

By itself glibc gives large blocks, and whatever is free at the heap's end, back to the system, which must
then find and clear every page of them anew: thousands a step on a CPU. Without glibc nothing is done.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's `malloc.h`."""
LARGEST_FROM_HEAP = 32 * 1024 * 1024
"""Bytes; glibc takes no more. Blocks beyond it come from the system and go back to it, as before."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        allocator.mallopt(M_TRIM_THRESHOLD, NEVER)
