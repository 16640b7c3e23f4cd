"""Fine-tune a language model on your own examples, and know that it deserves to be shipped.

Where to start reading: `graph.py` (what each asset needs), then `definitions.py` (the graph in Dagster, in the order of
the data), then the package of a stage.
"""

__version__ = "0.1.0"
