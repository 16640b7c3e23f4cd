"""The desk: the web app of data stewards and domain experts. Server-rendered pages, no build step, all from here.

    app.py        create_app() and run(host, port)
    page.py       templates and their filters; words.py: plain English for slugs and states
    users.py session.py open_sessions.py attempts.py headers.py private.py
                                                     who may come in, and what a browser may do with our pages
    tasks.py ledger.py review.py files.py login.py settings.py
                                                     the routes, a page family each
    standing.py story.py ledger_rows.py              what a page shows, as values read from the artifacts; no HTML there
    answerform.py queue.py                           the review's pure parts

It reads artifacts and writes only verdicts (through review/inbox.py), its own users and their sessions. It never makes
an asset.
"""
