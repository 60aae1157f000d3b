"""A page in the browser: teacher and student side by side from the same noise, and a person's blind choices.

What the page shows is computed in plain modules, which know no browser; `app.py` puts them on a page of Gradio,
`server.py` serves it on the loopback interface.
"""
