"""Rollouts that are in force from the start of the service, from a file.

    [[rollouts]]
    model = "movie-reviews"
    candidate = "2"
    share = 0.05

The other keys are those of a plan that an administrator states (`service.rollout.Plan`).
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.errors import StartupError
from service.rollout import Plan


class _Entry(Plan):
    model: str = Field(min_length=1)

    def plan(self) -> Plan:
        return Plan.model_validate(self.model_dump(exclude={"model"}))


class _RolloutFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rollouts: tuple[_Entry, ...] = ()

    @field_validator("rollouts")
    @classmethod
    def _different(cls, rollouts: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        names = [one.model for one in rollouts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"expected one rollout for each model, found two for {twice[0]}")
        return rollouts


def read_rollouts(path: Path) -> dict[str, Plan]:
    """Return the plans of a file, by the model's name.

    Raises StartupError, which names the file, the entry and its key, what was found and what was expected.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode())
        return {one.model: one.plan() for one in _RolloutFile.model_validate(content).rollouts}
    except OSError as error:
        raise StartupError(f"rollouts_file {path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        found = "" if problem["type"] in ("missing", "value_error") else f", found {str(problem['input'])[:60]}"
        raise StartupError(f"rollouts_file {path}: {where}: {message[:1].lower()}{message[1:]}{found}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"rollouts_file {path}: not TOML: {error}") from None
