"""Drawings: SVG and the JSON of figures."""
