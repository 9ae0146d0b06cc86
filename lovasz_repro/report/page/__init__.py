"""The report as one HTML page that opens from disk: tables, figures, claims and where they come
from, section by section of the paper.

content.py says what stands on it, ``template/`` how it looks.
"""
