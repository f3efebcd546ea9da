"""Transforms: fitted on the training split, applied by the very same code in prepare and in the endpoint."""
