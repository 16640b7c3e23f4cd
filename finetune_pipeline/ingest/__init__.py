"""Stage 1: rows of every declared source become examples with a stable id and an origin, or drops with a reason.

sources.py    which files a declared source means        encoding.py   which encoding a file has
readers.py    file → rows (csv.py: broken quotes)         layouts.py    row → messages (recognised or declared)
rows.py       the pure core: one row → Example or Drop    assets.py     the thin edge: the asset `raw_examples`
infer.py      what a new file seems to hold               declare.py    that, as a commented task.yaml
"""
