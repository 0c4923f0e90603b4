"""A lineage in words: fields of fields by their path, and none that are empty."""

from reelgpt.lineage_facts import facts


def test_fields_of_fields_are_named_by_their_path_and_empty_ones_are_left_out() -> None:
    known = {
        "kind": "tokens",
        "sampling": {"size": 128, "buckets": [], "shots": False},
        "uri": None,
        "label": "",
    }
    assert list(facts(known)) == ["kind tokens", "sampling.size 128", "sampling.shots False"]
    assert list(facts("unknown")) == ["unknown"]
