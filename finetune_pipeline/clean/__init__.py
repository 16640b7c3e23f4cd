"""Stage 2: fixes rows where that is safe, and drops the others with a reason; every change is in the ledger.

row_rules.py      the table of rules for one row;  row_cleaner.py: applies them
text_fixes.py     the table of text fixes: encoding, control characters, HTML (markup.py), white space
answers.py        whether an answer is in the declared format, and its canonical form
pii.py            e-mail, phone, card, IBAN, IP, SSN: found and masked
lengths.py        bounds on tokens
duplicates.py     exact and near duplicates, conflicts;  contradictions.py
normalize.py      when two texts are identical, and the form in which similar texts are compared
similarity.py     the definition of near duplicates, over sets of 5-grams (shingles.py) without long shared passages
                  (passages.py): found by MinHash and verified exactly (minhash.py), or all found (exact.py)
pipeline.py       all of the above on all rows;  assets.py: the asset `clean_examples`
"""
