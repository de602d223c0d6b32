"""What a running Prometheus says."""

import statistics

import httpx

from tests.deploy.queries import dashboard_queries, selectors
from tests.support.steady_load import Load

_RARE = {
    "ALERTS",
    "limbeck_rejected_total",
    "limbeck_model_load_failures_total",
    "limbeck_reference_label_share",  # the tests' bundle has none
}


def ask_prometheus(client: httpx.Client, path: str, **parameters: object) -> list | dict:
    answer = client.get(f"/api/v1/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def rate_beside_clients(client: httpx.Client, load: Load, window_s: int) -> float:
    """Return how many times the client's own rate Prometheus' is: the median over windows that end a second apart.

    A client that the machine holds up for a moment sends a burst after it, and a window may end between the two.
    """
    first_s, last_s = load.outcomes[0][0], load.outcomes[-1][0]
    query = f'sum(rate(limbeck_requests_total{{route="/v1/classify",status="200"}}[{window_s}s]))'
    ratios = []
    for back_s in range(int(last_s - first_s - window_s)):
        end_s = last_s - back_s
        ((_, seen),) = [r["value"] for r in ask_prometheus(client, "query", query=query, time=end_s)["result"]]
        sent_per_s = sum(end_s - window_s < when <= end_s for when, _, _ in load.outcomes) / window_s
        ratios.append(float(seen) / sent_per_s)
    print(f"\nPrometheus says {statistics.median(ratios):.4f} of what was sent; {sorted(ratios)}")  # noqa: T201
    assert len(ratios) >= 10
    return statistics.median(ratios)


def empty_panels(client: httpx.Client, time_s: float, *absent: str) -> list[str]:
    """Return the dashboard's queries that show nothing, but for what has not happened or is not counted yet.

    `absent` are beginnings of names that nobody here has.
    """
    empty = []
    for query in dashboard_queries():
        filled = query.replace("$__rate_interval", "30s").replace("$model", ".*")
        shown = ask_prometheus(client, "query", query=filled, time=time_s)["result"]
        names = {name for name, _ in selectors(query)}
        derived = ("limbeck:error_ratio", "limbeck:label_drift", *absent)
        if not (shown or names & _RARE or any(name.startswith(derived) for name in names)):
            empty.append(query)
    return empty
