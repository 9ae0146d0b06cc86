"""Tables, figures and claims, rebuilt from stored runs. Nothing here trains.

``runs.py`` decides which stored runs may stand together, ``sets.py`` which of them an experiment's
tables and figures show; everything else builds on these:

- ``tables.py``: a line in ``TABLES`` per table, networks and classes an entry each;
  ``render.py`` writes them, ``published.py`` has the paper's numbers.
- ``curves.py``, ``curves_voc.py``, ``synthetic_figure.py`` and ``picture_figures.py``: one line in
  ``FIGURES`` (``figures.py``) per figure; PDF, PNG and a sidecar JSON with the data and the runs
  behind every curve.
- ``examples.py``: pictures that runs stored, read with care, and which of them are shown.
- ``claims.py``: what the paper claims (``experiments/claims.yaml``) and what the stored runs say.

A number that no stored run gives is a dash with the command that would fill it, never a zero.
"""
