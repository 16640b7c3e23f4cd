"""Stage 4: checks the cleaned rows with Great Expectations; a share of them (95 %) has to pass every rule.

table.py          the table that is checked: a row for each example, a column for each thing that a rule reads
rules.py          the rules for rows, with completions.py, encoding.py and secrets.py
expectations.py   an expectation for each rule, and those that a declaration adds;  suite.py: the suites, and their run
losses.py         the rows that were lost before
gate.py           the verdict;  report.py: the report for people
assets.py         the asset `data_quality`
"""
