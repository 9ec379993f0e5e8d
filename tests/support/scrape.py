"""What ``GET /metrics`` answers, judged and taken apart by prometheus-client's parsers."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

Key = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The samples of one answer.

    Args:
        text: the body.
        kind: its content type, which says how to read it.
    """

    def __init__(self, text: str, kind: str) -> None:
        parse = parse_openmetrics if kind.startswith("application/openmetrics-text") else parse_text
        self.samples: dict[Key, float] = {}
        for family in parse(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"{key} comes twice"
                self.samples[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """Return a sample; it has to be there."""
        return self.samples[name, frozenset(labels.items())]

    def ends(self, operation: str) -> dict[str, float]:
        """Return how often an operation ended in which way."""
        found = ("ok", "refused", "failed", "cancelled")
        return {end: self("pluginsvc_operations_total", operation=operation, outcome=end) for end in found}
