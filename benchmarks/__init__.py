"""The suite that ``asv run`` measures: how each backend's ops and models change from commit to commit.

Every benchmark has the backend as its first parameter, so that all of asv's pages name it. The suite is taken from the
working tree and measures the ``shim`` of each commit, so it may use little of it, and only what stays.
"""

from . import _optime  # noqa: F401 - registers the kind of benchmark called timeop_
