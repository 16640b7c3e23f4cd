"""Fine-tune a language model on your own examples, and know that it deserves to be shipped.

Where to start reading: `definitions.py` (the graph, in the data's order), then `graph.py` (what each asset needs),
then the folder of the stage that interests you.
"""

__version__ = "0.1.0"
