"""What this machine's processes last knew of their mesh, on disk, for those that start alone.

`content` is what the files hold, `seal` what one looks like, `private_file` how it is read and
written, `place` where it is, `disk_thread` who does that; `keeper` keeps them up to date while a process runs.
"""

from meshrpc.last_known.keeper import LastKnown, Remembered

__all__ = ["LastKnown", "Remembered"]
