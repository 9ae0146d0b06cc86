"""Scoring trained networks and running them on images."""
