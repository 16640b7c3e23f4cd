"""Where a job runs. A job is a module with a description (JobData); a backend starts it and follows its events.

`local.run` starts a job as a process of this machine; `worker.main` is the entry point inside that process. Neither
knows what the job computes.
"""
