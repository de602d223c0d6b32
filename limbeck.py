"""The front door: one command, whose sub-commands import what they need only when they run."""


def main() -> None:
    """Run the command line."""
