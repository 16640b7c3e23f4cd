"""The desk: the web app for data stewards and domain experts. Server-rendered pages, without a build step.

    app.py                                      create_app() and run(host, port)
    tasks.py ledger.py review.py files.py login.py settings.py
                                                the routes
    page.py labels.py templates/ static/        templates, filters, texts for slugs and states
    task_status.py task_view.py ledger_rows.py  the values of a page, read from the artifacts
    review_session.py review_pages.py review_queue.py form_fields.py answer_form.py
                                                the review of one row after the other, and the form for an answer
    users.py session.py open_sessions.py attempts.py security_headers.py private_files.py
                                                sign-in and security

It reads artifacts and makes no asset. It writes verdicts and the round they belong to (through review/), users and
sessions.
"""
