"""What can go wrong in a load test before there is anything to report.

Exception
└── LoadTestError
    ├── TargetError      the URL is none, nobody answers there, or the first request was not answered with success
    ├── WorkloadError    texts that cannot be read, or cannot be sent in the dialect that is wanted
    ├── ObjectiveError   an objective that cannot be understood
    ├── ResultError      a file that is no result of a load test
    └── GeneratorError   a process that generates load ended

Errors of single requests during a test are none of these: they are counted by kind and reported.
"""


class LoadTestError(Exception):
    """The message says what was found, what was expected and what to do."""


class TargetError(LoadTestError):
    """The server cannot be asked, or does not answer the first request with success."""


class WorkloadError(LoadTestError):
    """Texts that cannot be read or sent."""


class ObjectiveError(LoadTestError):
    """An objective that cannot be understood."""


class ResultError(LoadTestError):
    """A file that is no result of a load test."""


class GeneratorError(LoadTestError):
    """A process that generates load ended."""
