"""Tests of lovasz_repro. A package, so that no other `tests` on the path takes its place."""
