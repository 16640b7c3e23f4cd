"""Stage 2: rows are fixed where that is safe, dropped with a reason where it is not; every change is in the ledger.

fix.py          the rules that fix a text, in order: mojibake, control, markup, space
answers.py       what a good answer is, and the one form it is given
pii.py      e-mail, phone, card, IBAN, IP, SSN: found and masked
similarity.py    how alike texts are, what many share left out (over shingles.py);  passages.py: long passages, cut out
normalize.py     what is the same text
minhash.py          near duplicates by MinHash, verified exactly;  exact.py: all near duplicates between two sides
duplicates.py    exact and near duplicates, contradictions, conflicts
row_cleaner.py        all rules for one row;  lengths.py: tokens
pipeline.py          the pure core: all of the above on all rows;  assets.py: the asset `clean_examples`
"""
