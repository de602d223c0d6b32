"""Exit with 0 if the service in this container answers GET /health/ready with 200, else with 1 and one line."""

import http.client
import os
import sys


def main() -> int:
    """Ask once. `http.client` and not `urllib`: it never goes through a proxy named in the environment."""
    connection = http.client.HTTPConnection("localhost", int(os.environ.get("LIMBECK_PORT", "8000")), timeout=4)
    try:
        connection.request("GET", "/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}")  # noqa: T201 - `docker inspect` keeps it
        return 1
    finally:
        connection.close()
    print(f"/health/ready answered {status}")  # noqa: T201
    return 0 if status == http.HTTPStatus.OK else 1


if __name__ == "__main__":
    sys.exit(main())
