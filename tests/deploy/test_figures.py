"""The metrics of all replicas in one text."""

from prometheus_client.parser import text_string_to_metric_families

from jaxllama.deploy.figures import GatewayFigures, merge_metrics

TEXT = """# HELP tokens_total Tokens
# TYPE tokens_total counter
tokens_total{model="m"} 5.0
# HELP open Open { requests
# TYPE open gauge
open 2.0
# HELP seconds Time
# TYPE seconds histogram
seconds_bucket{le="1.0"} 1.0
seconds_bucket{le="+Inf"} 1.0
seconds_count 1.0
seconds_sum 0.5
"""


def test_every_sample_names_its_replica_and_families_stay_together():
    merged = merge_metrics({"a": TEXT, "b": TEXT})
    families = list(text_string_to_metric_families(merged))
    assert [each.name for each in families] == ["tokens", "open", "seconds"]
    for family in families:
        of = {"a": [], "b": []}
        for sample in family.samples:
            labels = dict(sample.labels)
            of[labels.pop("replica")].append((sample.name, labels, sample.value))
        assert of["a"] == of["b"] and of["a"]


def test_the_gateways_figures_are_metrics():
    text = GatewayFigures(open=3, retried=2, lost=1).text()
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == {
        "jaxllama_gateway_open": 3,
        "jaxllama_gateway_retried_total": 2,
        "jaxllama_gateway_lost_total": 1,
    }
