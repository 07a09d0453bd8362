"""Reports: what a run leaves to read. Only page.py and plots.py need Jinja2 and matplotlib."""
