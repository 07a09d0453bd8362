"""The report of a run: numbers, lines, pictures, page. Jinja2 and matplotlib load with the page."""
