"""What one sees of a server in JupyterLab while it starts, serves and stops; text where there are no widgets.

``session.py`` holds the launch and looks at the server, ``seen.py`` is what was seen, ``pages.py`` writes it as text
and HTML, ``views.py``, ``logs.py`` and ``chat.py`` are live views, ``console.py`` all of them with two buttons.
"""
