"""Spreadsheets in and out, safely: xlsx and csv."""
