"""Stage 1: reads rows of every declared source as examples with a stable id and an origin, or as drops with a reason.

sources.py        which files a declared source has
readers.py        the table of source formats, and how a file's format is recognized
                  csv_reader.py (csv_records.py), json_reader.py (json_rows.py), arrow_rows.py, saved_dataset.py
rows.py           the types that all readers share
encoding.py       the encoding of a text file (utf16.py: without a byte order mark)
layouts.py        which columns hold prompt and completion
conversations.py  row → messages, or the reason why it is not an example (turns.py: lists of messages, transcripts)
                  preferences.py: rows with a rejected completion
examples.py       row → Example or Drop (groups.py: its group)
assets.py         the asset `raw_examples`
infer.py          a declaration inferred from a file (answer_format.py: the format of its answers)
scaffold.py       that declaration as a commented task.yaml
"""
