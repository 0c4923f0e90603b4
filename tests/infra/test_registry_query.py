from datetime import UTC, datetime

import pytest

from infra.errors import UsageError
from infra.registry_query import Fields, parse_query

GOOD: Fields = {
    "name": "gpt_tiny",
    "version": 3.0,
    "val_loss": 2.9,
    "alias": frozenset({"champion", "demo"}),
    "task": frozenset({"continue"}),
    "created": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "model.num_heads": "4",
    "kind": "gpt",
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("val_loss < 3.2", True),
        ("val_loss>=2.9 AND val_loss<=2.9", True),
        ("val_loss > 2.9e0", False),
        ("val_loss < 3.2 and task = 'continue' or alias = 'champion'", True),
        ("val_loss < 1 and task = 'continue' or alias = 'champion'", True),
        ("val_loss < 1 and (task = 'continue' or alias = 'champion')", False),
        ("not val_loss < 1 and not not kind = 'gpt'", True),
        ("not (kind = 'gpt' or kind = 'tokenizer')", False),
        ("alias = 'demo'", True),
        ("alias != 'demo'", False),
        ("alias != 'other'", True),
        ("alias like 'champ%'", True),
        ("name like 'GPT%'", True),
        ("name like 'gpt'", False),
        ("name like 'gp[t]%'", False),
        ("version = 3", True),
        ("version != 3", False),
        ("model.num_heads = 4 and `model.num_heads` > 3", True),
        ("model.num_heads = '4'", True),
        ("kind > 3", False),
        ("created > '2026-01-31' and created < \"2026-03-01T12:00:01\"", True),
        ("created >= '2026-03-01T13:00+01:00'", True),
        ("created < '2026-03-01'", False),
    ],
)
def test_a_query_means_what_it_says(query: str, expected: bool) -> None:
    assert parse_query(query).matches(GOOD) is expected


def test_a_comparison_with_what_is_missing_is_false() -> None:
    for symbol in ("=", "!=", "<", ">", "like"):
        assert not parse_query(f"psnr {symbol} 3").matches(GOOD)


def test_a_query_knows_the_names_that_it_asks_for() -> None:
    query = parse_query("a = 1 and (b < 2 or not `c d` = 'x')")
    assert list(query.names()) == ["a", "b", "c d"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "a name at character 1, where it ends"),
        ("val_loss", "an operator at character 9, where it ends"),
        ("val_loss <", "a number or quoted text at character 11"),
        ("val_loss is 3", "one of = != < <= > >= like at character 10"),
        ("val_loss < 3 task = 'x'", "`and`, `or` or the end at character 14, where it has 'task'"),
        ("(val_loss < 3", "`)` at character 14"),
        ("name = gpt", "a number or quoted text at character 8, where it has 'gpt'"),
        ("name = 'gpt", "unreadable at character 8"),
        ("val_loss < 3..2", "unreadable at character 12"),
    ],
)
def test_nonsense_is_refused_with_its_place(query: str, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_query(query)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("val_loss < '3'", "compares a number with text"),
        ("alias > 3", "has no order"),
        ("created > 'yesterday'", "is a time and 'yesterday' is none"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(query: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_query(query).matches(GOOD)
