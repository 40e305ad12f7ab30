"""A gradebook as a file for others: CSV, Gradescope's results.json, an LMS's column, a page to look at.

Every export is a function of the gradebook alone (the same grades give the same bytes) and is written whole or not at
all. What a student wrote is text: never a formula in a spreadsheet, never markup on a page.
"""
