"""Batch inference: a model version asked about all rows of a source, in parts that are written once each."""
