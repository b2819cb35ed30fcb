"""Finished workdirs → one table with honest statistics, plots, Markdown, HTML and CSV.

`collect` reads folders, `tables` groups runs into rows and computes their figures, `command` says
how a row was made, `plots` and `posteriors` draw, `render` writes.
"""
