"""How a reader must refuse a file that means harm: in a sentence, at once, without memory."""

import gc
import time
import tracemalloc

import pytest
from helpers import one_sentence

SECOND = 1.0
LONGEST = 1500  # characters of a message


def refused(call, path, match: str, peak: float = 2e7) -> str:
    """The message with which `call(path)` refuses a file, and what the refusal may cost.

    Args:
      call: what reads the file.
      path: the file; the message names it.
      match: what the message says, a regular expression.
      peak: bytes that may be allocated. Measured apart, because it takes the time of several reads.
    """
    for left in (2, 1, 0):  # another program on the machine may disturb the first tries
        gc.freeze()  # what other tests left is no work of the reader
        begin = time.process_time()
        with pytest.raises(ValueError, match=match) as error:
            call(path)
        took = time.process_time() - begin
        gc.unfreeze()
        if took < SECOND:
            break
        assert left, f"{took:.1f} s"
    text = str(error.value)
    assert one_sentence(text) and str(path) in text and len(text) < LONGEST
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match):
            call(path)
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()
    return text
