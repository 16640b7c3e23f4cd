"""Where a job runs. A job is a command with a JSON description; a backend starts it and knows nothing of what it does.

`local.run` is the parent's side (a process of its own on this machine); `worker.main` is the child's.
"""
