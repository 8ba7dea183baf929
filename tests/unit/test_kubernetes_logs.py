"""What kubelet appends to a log that it cannot follow is not the job's.

The words are as a kubelet of 1.34 sent them with `sysctl fs.inotify.max_user_instances=1`. They are not provoked here: the
limit holds for the whole machine, and other tests run on it.
"""

from __future__ import annotations

import pytest

from shared.runtime.kubernetes_logs import _followed_words, _NoLogError

WORDS = b"failed to create fsnotify watcher: too many open files"


async def followed(*chunks: bytes) -> tuple[bytes, bool]:
    """What comes of these chunks, and whether the log is to be read again."""

    async def answer():
        for chunk in chunks:
            yield chunk

    came = b""
    try:
        async for chunk in _followed_words(answer(), "pod"):
            came += chunk
    except _NoLogError:
        return came, True
    return came, False


@pytest.mark.parametrize("chunks", [(b"up\n" + WORDS,), (b"up\n", WORDS), (b"up\n", WORDS[:45], WORDS[45:])])
async def test_words_of_the_node_are_dropped_and_the_log_is_read_again(chunks):
    assert await followed(*chunks) == (b"up\n", True)


@pytest.mark.parametrize("chunks", [(WORDS + b"\n",), (WORDS, b"\n"), (WORDS, b"\nand on"), (b"up",), ()])
async def test_words_of_the_job_stay(chunks):
    assert await followed(*chunks) == (b"".join(chunks), False)
