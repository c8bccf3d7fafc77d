"""Data sets: what there is (``catalogue``), and how its cache of decoded images is made (``worker`` and its child).

Only ``catalogue``, ``worker``, ``errors`` and ``facts`` are for the web server; the others import numpy or Pillow.
"""
