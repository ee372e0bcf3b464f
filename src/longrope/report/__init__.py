"""Figures, tables and the HTML page of one or several runs."""
