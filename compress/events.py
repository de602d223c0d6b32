"""What training tells TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Tell(Protocol):
    """Takes named values at a step of training."""

    def __call__(self, step: int, **values: float) -> None:
        """Record the values."""


def _nothing(step: int, **values: float) -> None:
    pass


@contextmanager
def events(folder: Path | None, title: str, done: int) -> Iterator[Tell]:
    """Yield what writes scalars to `folder`/TITLE, or nothing where there is no folder.

    What an interrupted run told after step `done`, from which it goes on, is taken back.
    """
    if folder is None:
        yield _nothing
        return
    import tensorboard  # noqa: F401 - so that a missing one is named, not torch's own module
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / title.replace(" ", "-")), purge_step=done) as writer:

        def tell(step: int, **values: float) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield tell
