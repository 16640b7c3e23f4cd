"""Stage 2: rows are mended where that is safe, dropped with a reason where it is not; every change is in the ledger.

mend.py          the rules that mend a text, in order: mojibake, control, markup, space
answers.py       what a good answer is, and the one form it is given
personal.py      e-mail, phone, card, IBAN, IP, SSN: found and masked
similarity.py    how alike texts are, what many share left out (over grams.py);  passages.py: long passages, cut out
normalise.py     what is the same text
near.py          near duplicates by MinHash, verified exactly;  exact.py: all near duplicates between two sides
duplicates.py    exact and near duplicates, contradictions, conflicts
single.py        all rules for one row;  lengths.py: tokens
rows.py          the pure core: all of the above on all rows;  assets.py: the asset `clean_examples`
"""
