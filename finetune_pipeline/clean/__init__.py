"""Stage 2: rows are mended where that is safe, dropped with a reason where it is not; every change is in the ledger.

mend.py          the rules that mend a text, in order: mojibake, control, markup, space
answers.py       what a good answer is, and the one form it is given
personal.py      e-mail, phone, card, IBAN, IP, SSN: found and masked
near.py          near-duplicate texts (MinHash over grams.py, verified exactly);  normalise.py: what is the same text
duplicates.py    exact and near duplicates, contradictions
single.py        all rules for one row;  lengths.py: tokens
rows.py          the pure core: all of the above on all rows;  assets.py: the asset `clean_examples`
"""
