"""What all parts of a recipe are."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Some keys of a recipe; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
