"""The `finetune` command.

commands.py   arguments and exit codes       status.py    `finetune status` and `finetune validate`
terminal.py   progress of `finetune run`     services.py  `finetune up`
docs.py       generated reference pages
"""
