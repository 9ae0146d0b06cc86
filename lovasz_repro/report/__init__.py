"""Tables, figures and claims, rebuilt from stored runs. Nothing here trains.

``runs.py`` decides which stored runs may stand together; everything else builds on it:

- ``tables.py``: one function and one line in ``TABLES`` per table; ``render.py`` writes them as
  Markdown, LaTeX, CSV and JSON, or prints them.
- ``cityscapes.py``, ``cityscapes_figures.py``, ``cityscapes_pictures.py``: Sec. 4.4, its tables and
  Figures 8 and 9; the same of CamVid in the layout of Cityscapes.
- ``voc_binary.py`` and ``voc_binary_*.py``: Sec. 4.2, Table 1 and Figure 4.
- ``stored_pictures.py``: pictures that runs stored, read with care, for Figures 4 and 8.
- ``figures.py``: one function and one line in ``FIGURES`` per figure; PDF, PNG and a sidecar
  JSON with the data and the runs behind every curve.
- ``claims.py``: what the paper claims (``experiments/claims.yaml``) and what the stored runs say.

A number that no stored run gives is a dash with the command that would fill it, never a zero.
"""
