"""The query language of the registry: `val_loss < 3.2 and task = 'continue' or alias = 'champion'`.

    query       any ("or" any)* where `and` binds closer than `or`, and `not` closer than `and`; ( ) group
    comparison  NAME OPERATOR VALUE
    NAME        a word, or anything between backquotes
    OPERATOR    = != < <= > >= like      (`like` takes % for any characters, and ignores case)
    VALUE       a number, or text between ' or "; beside a time, text is an ISO date or time, UTC if unsaid

A comparison with something that a record does not have is false. A record's value may hold several names at
once, such as its aliases: `=` holds if one of them is equal, `!=` if none is. Nothing here knows MLflow.
"""

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.errors import UsageError

Value = float | str | datetime | frozenset[str]
Fields = Mapping[str, Value]

ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS = ("=", "!=", *ORDERS, "like")
TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    | '(?P<single>[^']*)' | "(?P<double>[^"]*)" | `(?P<quoted>[^`]+)`
    | (?P<symbol><=|>=|!=|[=<>()])
    | (?P<word>[A-Za-z_][\w./-]*)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    name: str
    symbol: str
    wanted: float | str

    def matches(self, fields: Fields) -> bool:
        value = fields.get(self.name)
        if value is None:
            return False
        if self.symbol == "!=":
            return not self._equals(value)
        if self.symbol == "=":
            return self._equals(value)
        if self.symbol == "like":
            return self._resembles(value)
        return self._is_ordered(value)

    def names(self) -> Iterator[str]:
        yield self.name

    def _equals(self, value: Value) -> bool:
        if isinstance(value, frozenset):
            return str(self.wanted) in value
        if isinstance(self.wanted, str) and isinstance(value, str):
            return value == self.wanted
        ours, theirs = self._numbers(value)
        return ours == theirs

    def _resembles(self, value: Value) -> bool:
        pattern = re.sub(r"([*?[])", r"[\1]", str(self.wanted)).replace("%", "*").lower()
        texts = value if isinstance(value, frozenset) else {str(value)}
        return any(fnmatch.fnmatchcase(text.lower(), pattern) for text in texts)

    def _is_ordered(self, value: Value) -> bool:
        if isinstance(value, frozenset):
            raise UsageError(f"{self.name} has no order; compare it with =, != or like")
        ours, theirs = self._numbers(value)
        return ORDERS[self.symbol](ours, theirs)

    def _numbers(self, value: float | str | datetime) -> tuple[float, float]:
        """Both sides as numbers; text that holds none is NaN, which nothing equals or precedes."""
        if isinstance(value, datetime):
            return value.timestamp(), self._wanted_time().timestamp()
        if isinstance(self.wanted, str):
            hint = f"{self.name} {self.symbol} 3.2" if isinstance(value, float) else f"{self.name} = 'text'"
            raise UsageError(
                f"{self.name} {self.symbol} {self.wanted!r} compares a number with text; write {hint}"
            )
        return _number(value), self.wanted

    def _wanted_time(self) -> datetime:
        try:
            time = datetime.fromisoformat(str(self.wanted))
        except ValueError:
            raise UsageError(
                f"{self.name} is a time and {self.wanted!r} is none; write '2026-01-31' or '2026-01-31T12:00'"
            ) from None
        return time if time.tzinfo else time.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Every:
    parts: tuple["Query", ...]

    def matches(self, fields: Fields) -> bool:
        return all(part.matches(fields) for part in self.parts)

    def names(self) -> Iterator[str]:
        return (name for part in self.parts for name in part.names())


@dataclass(frozen=True, slots=True)
class Some:
    parts: tuple["Query", ...]

    def matches(self, fields: Fields) -> bool:
        return any(part.matches(fields) for part in self.parts)

    def names(self) -> Iterator[str]:
        return (name for part in self.parts for name in part.names())


@dataclass(frozen=True, slots=True)
class Except:
    part: "Query"

    def matches(self, fields: Fields) -> bool:
        return not self.part.matches(fields)

    def names(self) -> Iterator[str]:
        return self.part.names()


Query = Comparison | Every | Some | Except


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """One of `number`, `text`, `name`, `symbol`, `word`, `end`."""
    text: str
    column: int


def parse_query(text: str) -> Query:
    """The query that `text` says. Raises UsageError that points at the place where it stops making sense."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0

    def parse(self) -> Query:
        query = self._some()
        if self._peek().kind != "end":
            raise self._unexpected("`and`, `or` or the end")
        return query

    def _some(self) -> Query:
        parts = [self._every()]
        while self._took("or"):
            parts.append(self._every())
        return Some(tuple(parts)) if len(parts) > 1 else parts[0]

    def _every(self) -> Query:
        parts = [self._single()]
        while self._took("and"):
            parts.append(self._single())
        return Every(tuple(parts)) if len(parts) > 1 else parts[0]

    def _single(self) -> Query:
        if self._took("not"):
            return Except(self._single())
        if not self._took("("):
            return self._comparison()
        inner = self._some()
        if not self._took(")"):
            raise self._unexpected("`)`")
        return inner

    def _comparison(self) -> Comparison:
        name = self._take({"word", "name"}, "a name")
        symbol = self._take({"symbol", "word"}, "an operator").text.lower()
        if symbol not in OPERATORS:
            self._next -= 1
            raise self._unexpected(f"one of {' '.join(OPERATORS)}")
        wanted = self._take({"number", "text"}, "a number or quoted text")
        return Comparison(name.text, symbol, float(wanted.text) if wanted.kind == "number" else wanted.text)

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _took(self, word: str) -> bool:
        token = self._peek()
        if token.kind not in ("word", "symbol") or token.text.lower() != word:
            return False
        self._next += 1
        return True

    def _take(self, kinds: set[str], wanted: str) -> Token:
        token = self._peek()
        if token.kind not in kinds:
            raise self._unexpected(wanted)
        self._next += 1
        return token

    def _unexpected(self, wanted: str) -> UsageError:
        token = self._peek()
        found = "it ends" if token.kind == "end" else f"it has {token.text!r}"
        return UsageError(
            f"the query {self._text!r} needs {wanted} at character {token.column}, where {found}"
        )


def _tokens(text: str) -> Iterator[Token]:
    place = 0
    while text[place:].strip():
        found = TOKEN.match(text, place)
        if found is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise UsageError(
                f"the query {text!r} has something unreadable at character {column}; text needs quotes"
            )
        group = str(found.lastgroup)
        kind = {"single": "text", "double": "text", "quoted": "name"}.get(group, group)
        yield Token(kind, found[group], found.start(group) + 1)
        place = found.end()
    yield Token("end", "", len(text) + 1)


def _number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
