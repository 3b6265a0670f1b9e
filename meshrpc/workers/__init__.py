"""Worker processes: a service's processes, and the supervisor that keeps them running.

The supervisor (`supervisor.py`) starts each worker (`worker.py`) as a new interpreter, because a
fork of a process that holds gRPC objects hangs. Two pipes join them: the lifeline down, whose end
tells a worker that its supervisor is gone, and the reports up.
"""
