"""Training: what is learned is audited, a LoRA adapter is trained in a process of its own, and kept.

encode (rows to tokens), audit, packed (the loss, nothing computed twice), schedule, loop, checkpoint, job, assets
"""
