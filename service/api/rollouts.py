"""What an administrator may do with a new version: try it on a part of the traffic, promote it, end that."""

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from service.api.routes import KEY_EXAMPLES, documented, require_admin, require_json
from service.errors import (
    ContentTypeError,
    InvalidInputError,
    NotReadyError,
    RolloutError,
    ServiceError,
    UnknownModelError,
    UnknownRolloutError,
)
from service.lifecycle import Lifecycle
from service.rollout import Plan, State
from service.trial import Trial
from service.trials import Trials


class Observed(BaseModel):
    """What was counted of a candidate in all worker processes, since the one that answers knows of its rollout."""

    requests: int = Field(description="that it has answered, or failed to; shadows excluded")
    faults: int = Field(description="of these")
    slow: int = Field(description="of these, those that took the engine longer than max_p99_ms")
    shadows: int = Field(description="requests that it has answered to be compared, or failed to")
    shadow_faults: int = Field(description="of these")
    shadows_shed: int = Field(description="left out because a queue was not nearly empty")
    comparisons: int = Field(description="texts that both versions have answered")
    disagreements: int = Field(description="of these, those that they have decided differently")


class RolloutState(BaseModel):
    """A rollout, and how it goes."""

    model: str
    state: State
    reason: str = Field(description="why it was rolled back; empty otherwise")
    problem: str = Field(
        description="why the candidate gets no requests although the rollout is running; empty otherwise"
    )
    answering: str | None = Field(description="the version that answers requests without one, but for the share")
    plan: Plan
    observed: Observed


_GONE = UnknownRolloutError("no rollout of model 'x'")
_ERRORS = documented(*KEY_EXAMPLES, _GONE, NotReadyError("models are still loading"))


def _failing(*errors: ServiceError) -> dict[int | str, dict[str, object]]:
    return _ERRORS | documented(*errors)


def router(lifecycle: Lifecycle, trials: Trials) -> APIRouter:
    """Return the routes, for administrators' keys only; changes are answered when all workers have made them."""
    path = "/v1/admin/models/{model}/rollout"
    routes = APIRouter(tags=["administration"], dependencies=[Depends(require_admin)])

    @routes.put(
        path,
        summary="Try a new version on a part of the traffic",
        dependencies=[Depends(require_json)],
        responses=_failing(
            UnknownModelError("no model 'x'; there are: tiny"),
            RolloutError("stable", "found 3, expected a version in service: 2, 1"),
            ContentTypeError("found content type text/plain, expected application/json"),
            InvalidInputError("share", "input should be less than or equal to 1, found 2"),
        ),
    )
    async def state(model: str, plan: Plan) -> RolloutState:
        complete = trials.complete(model, plan)
        await lifecycle.have(lambda wishes: wishes.with_rollout(model, complete), look=False)
        return _state(trials.find(model))

    @routes.get(path, summary="Tell how a rollout goes", responses=_ERRORS)
    async def tell(model: str) -> RolloutState:
        return _state(trials.find(model))

    @routes.post(
        f"{path}/promote",
        summary="Let the candidate answer everything from now on",
        responses=_failing(RolloutError("candidate", "version 2 of x is not in service, or does not answer")),
    )
    async def promote(model: str) -> RolloutState:
        trials.check_promotion(model)
        number = trials.find(model).rollout.number
        await lifecycle.have(lambda wishes: wishes.with_state(model, number, State.PROMOTED), look=False)
        return _state(trials.find(model))

    @routes.delete(
        path,
        summary="Forget a rollout: the highest version answers again",
        status_code=204,
        responses=_failing(RolloutError("candidate", "version 2 of x is the highest and would answer everything …")),
    )
    async def forget(model: str) -> None:
        trials.check_removal(model)
        await lifecycle.have(lambda wishes: wishes.without_rollout(model), look=False)

    return routes


def _state(trial: Trial) -> RolloutState:
    rollout = trial.rollout
    promoted = trial.candidate if rollout.state is State.PROMOTED else None
    answering = promoted or trial.stable or trial.candidate
    return RolloutState(
        model=trial.name,
        state=rollout.state,
        reason=rollout.reason,
        problem=trial.problem if rollout.state is State.RUNNING else "",
        answering=None if answering is None else answering.version,
        plan=rollout.plan,
        observed=Observed(
            requests=int(trial.requests.value),
            faults=int(trial.faults.value),
            slow=int(trial.slow.value),
            shadows=int(trial.shadows.value),
            shadow_faults=int(trial.shadow_faults.value),
            shadows_shed=int(trial.shadows_shed.value),
            comparisons=int(trial.comparisons.value),
            disagreements=int(trial.disagreements.value),
        ),
    )
