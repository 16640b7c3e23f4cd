"""The desk: the web app of data stewards and domain experts. Server-rendered pages, no build step, all from here.

    app.py        create_app() and run(host, port)
    page.py       templates and their filters; labels.py: plain English for slugs and states
    users.py session.py open_sessions.py attempts.py security_headers.py private_files.py
                                                     who may come in, and what a browser may do with our pages
    tasks.py ledger.py review.py files.py login.py settings.py
                                                     the routes, a page family each
    task_status.py task_view.py ledger_rows.py              what a page shows, as values read from the artifacts; no
    HTML there
    answerform.py review_queue.py                           the review's pure parts

It reads artifacts and writes only verdicts (through review/verdict_store.py), its own users and their sessions. It
never makes an asset.
"""
