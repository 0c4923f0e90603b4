"""Every way in which a span can fail, or be damaged in part: a closed list, and what each means.

A fault of the machinery (storage that does not answer, a node without memory, a child that cannot start) is
none of these: it raises, and never becomes a row.
"""

ERROR_CLASSES = {
    "unreadable": "no regular file can be opened under the name: a dangling link, a pipe, no permission",
    "empty": "the file has no bytes",
    "not_media": "no demuxer knows the file",
    "no_video": "the file has no video stream",
    "unsupported": "no decoder of this build knows the video stream",
    "truncated": "the file was cut off before the part that is needed",
    "corrupt": "the video stream cannot be decoded, or is damaged",
    "cpu_limit": "decoding used more CPU seconds than it may (--limits.cpu-seconds)",
    "memory_limit": "decoding needed more memory than it may use (--limits.memory-mb)",
    "decoder_crash": "the decoder crashed each time it was tried",
    "decoder_hang": "the decoder stood still without using the CPU",
}
