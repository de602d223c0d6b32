"""What can go wrong when texts are classified without HTTP.

Exception
└── BulkError
    ├── InputError    an input of a Classifier that cannot be classified; the message names it
    ├── TaskError     the bundle's task is another: labels of whole texts, or entities
    ├── FormatError   a file that cannot be read as a whole: its ending, its header, its columns, damage
    ├── ResumeError   an interrupted run left work here that was another run's
    ├── OutputError   the output cannot be written
    └── EndpointError a live endpoint that is compared with cannot be asked

A single bad row is none of these: it is reported with its line, and the rest is done.
"""


class BulkError(Exception):
    """The message says what was found, what was expected and what to do."""


class InputError(BulkError):
    """An input that cannot be classified."""


class TaskError(BulkError):
    """The bundle's task is another than what is asked of it."""


class FormatError(BulkError):
    """A file that cannot be read as a whole."""


class ResumeError(BulkError):
    """An interrupted run left work that the present one cannot go on with."""


class OutputError(BulkError):
    """The output cannot be written."""


class EndpointError(BulkError):
    """A live endpoint cannot be asked, or does not answer as its dialect does."""
