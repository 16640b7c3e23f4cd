"""Stage 1: rows of every declared source become examples with a stable id and an origin, or drops with a reason.

sources.py        which files a declared source means        encoding.py   which encoding a file has
readers.py        file → rows (csv_rows.py, json_rows.py, arrow_rows.py, saved_dataset.py)
layouts.py        which columns hold what                    conversations.py   row → messages, or a refusal
examples.py       the pure core: row → Example, PreferencePair or Drop
assets.py         the thin edge: the asset `raw_examples`
infer.py          what a new file seems to hold (answer_format.py: of its answers)
scaffold.py        that, as a commented task.yaml
"""
