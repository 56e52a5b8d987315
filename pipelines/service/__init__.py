"""`clipmill serve`: many jobs on a Ray cluster, over HTTP, with the dashboard.

    record.py    what the service writes down about a job, in its dataset directory
    queue.py     whose turn it is
    jobs.py      the jobs: submit, watch, cancel, resume, delete; a thread that keeps them going
    tally.py     what a dataset holds so far, in numbers
    tokens.py    who may do what
    auth.py      which requests are let in
    routes.py    the HTTP interface
    pages.py     the jobs page and the log-in page
    app.py       all of it as one application
    client.py    what the command line says to it

The service has no database: a job is its dataset directory and what Ray says of it.
"""
