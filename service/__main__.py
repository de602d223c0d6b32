"""`python -m service`: serve with the settings of the environment; what the container runs."""

import signal
import sys

# The imports below take about a second, in which Python, as process 1 of a container, would ignore SIGTERM.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

from pydantic import ValidationError  # noqa: E402

from service.server import serve  # noqa: E402
from service.settings import Settings, describe_settings_error  # noqa: E402


def main() -> None:
    """Serve; exit with 0 after a signal, with 1 when nothing can be served and with 2 when a setting is wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        print(describe_settings_error(error), file=sys.stderr)  # noqa: T201 - there is no logging yet
        raise SystemExit(2) from error
    raise SystemExit(serve(settings))


if __name__ == "__main__":
    main()
