"""Everything that a run imports, for the process that others are forked from; nothing here may start a thread."""

import sklearn.linear_model  # noqa: F401

import limbeck  # noqa: F401
