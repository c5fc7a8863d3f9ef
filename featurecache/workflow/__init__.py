"""What commands and notebooks call, from recordings to features: `make_clips`, `extract`, `make_demo`.

Each takes a project, does what the command of that name does with every check it makes, and returns a document.
"""
