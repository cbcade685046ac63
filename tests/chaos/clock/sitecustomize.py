"""A clock that is wrong, and is set while a process runs: on PYTHONPATH of some trainings alone.

CHAOS_CLOCK holds three numbers: seconds that the clock is ahead, after how many seconds it is set, and to
how many seconds ahead.
"""

import os
import time

if "CHAOS_CLOCK" in os.environ:
    _at_first, _until, _later = map(float, os.environ["CHAOS_CLOCK"].split(","))
    _true, _begun = time.time, time.monotonic()

    def _wrong():
        return _true() + (_at_first if time.monotonic() - _begun < _until else _later)

    time.time = _wrong
