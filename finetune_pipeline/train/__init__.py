"""Training of a LoRA adapter, in a separate process.

In the order of the computation: tokenize, audit, adapter, forward_check, packing (the loss), replay (general texts),
schedule, loop, checkpoint; job (the process) and assets (the asset `adapter`) call them.
"""
