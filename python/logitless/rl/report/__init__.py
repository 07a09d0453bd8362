"""The report of a run: numbers, lines, charts, page. Jinja2 loads with the page."""
