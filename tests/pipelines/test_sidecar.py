"""What a sidecar says reaches the clips it is about, whatever its format; what is wrong with one is said."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UsageError
from pipelines.building.job import DeriveJob
from pipelines.checking.verify import verify
from pipelines.config import FilterConfig, SplitConfig
from pipelines.derive import derive
from pipelines.failures import RetryJob, retry
from pipelines.packing.sidecar import Sidecar
from pipelines.packing.sidecar_files import SCHEMA, VALUES
from pipelines.shards import ShardSet
from pipelines.sweep import sweep
from tests.rows import TOKENIZER, build, clips_of, sources, video_job, writing

NAMES = [f"video-{k}.mp4" for k in range(3)]
ROWS: list[dict[str, Any]] = [
    {"source": "video-0.mp4", "label": "cat", "caption": 'a cat, "quoted"\nand more'},
    {
        "source": "video-0.mp4",
        "start_seconds": 60.0,
        "end_seconds": 62.5,
        "caption": "a dog",
        "action": [3, 1],
    },
    {"source": "video-0.mp4", "start_seconds": 61.0, "end_seconds": 62.0, "label": "bird"},
    {"source": "/videos/video-1.mp4", "start_seconds": 120.0, "label": "late"},
    {"source": "s3://elsewhere/secret.mp4", "label": "nobody"},
    {"source": "missing.mp4", "label": "nobody"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the file's name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    elif path.suffix == ".csv":
        cells = [[_cell(row.get(name)) for name in SCHEMA.names] for row in rows]
        path.write_text("\n".join(",".join(line) for line in [SCHEMA.names, *cells]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _cell(value: Any) -> str:
    text = "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n') else text


@pytest.fixture
def sidecar(tmp_path: Path) -> Sidecar:
    return Sidecar.read(str(write(tmp_path / "facts.jsonl", ROWS)))


def said(uri: Path | str) -> dict[str, tuple[Any, ...]]:
    return {clip_id: tuple(row[name] for name in VALUES) for clip_id, row in clips_of(uri).items()}


def test_format_and_order_change_nothing_and_every_value_does(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    files = [
        write(tmp_path / name, rows)
        for name, rows in (("a.jsonl", ROWS), ("b.csv", shuffled), ("c.parquet", ROWS), ("D.CSV", ROWS))
    ]
    digests = {Sidecar.read(str(path)).digest for path in files if path.suffix != ".CSV"}
    assert len(digests) == 1
    for number, name in ((0, "label"), (0, "caption"), (1, "end_seconds"), (1, "action"), (5, "source")):
        changed = [dict(row) for row in ROWS]
        changed[number][name] = {"action": [3, 2], "end_seconds": 62.75}.get(name, "other")
        digests.add(Sidecar.read(str(write(tmp_path / "changed.jsonl", changed))).digest)
    assert len(digests) == 6


def test_a_clip_takes_of_each_value_what_the_narrowest_part_around_its_middle_says(
    tmp_path: Path, sidecar: Sidecar
) -> None:
    built = build(video_job(tmp_path / "set", sidecar=sidecar), sources(NAMES))
    found, caption = said(tmp_path / "set"), ROWS[0]["caption"]
    assert found["id-of-video-0.mp4/00000/0000"] == ("cat", caption, None)
    assert found["id-of-video-0.mp4/00001/0000"] == ("cat", "a dog", [3, 1])  # from 60 s, middle 60.5
    assert found["id-of-video-0.mp4/00001/0001"] == ("bird", "a dog", [3, 1])
    assert found["id-of-video-0.mp4/00001/0002"] == ("cat", caption, None)  # middle 62.5
    assert {found[f"id-of-video-1.mp4/0000{k}/0000"][0] for k in (0, 1)} == {None}
    assert found["id-of-video-1.mp4/00002/0000"] == ("late", None, None)
    assert all(found[clip_id] == (None, None, None) for clip_id in found if "video-2" in clip_id)
    assert built.manifest.sidecar == {
        "rows": 6,
        "unmatched_rows": 2,
        "unmatched": ["missing.mp4", "s3://elsewhere/secret.mp4"],
    }
    assert verify(str(tmp_path / "set")) == []


@pytest.mark.parametrize("swept", [False, True])
def test_another_sidecar_is_joined_without_decoding_as_if_it_had_been_the_first(
    tmp_path: Path, sidecar: Sidecar, swept: bool
) -> None:
    out, plain = tmp_path / "set", build(video_job(tmp_path / "plain"), sources(NAMES)).manifest
    build(video_job(out), sources(NAMES))
    fresh = build(video_job(tmp_path / "fresh", sidecar=sidecar), sources(NAMES)).manifest
    assert fresh.fingerprint != plain.fingerprint
    assert fresh.recipe_id != plain.recipe_id
    if swept:
        sweep(str(out))
    with pytest.raises(UsageError, match=r"packing|sidecar=None, not"):
        build(video_job(out, sidecar=sidecar), sources(NAMES))
    for given, expected in ((sidecar, fresh), (None, plain)):
        again = build(video_job(out, sidecar=given, redo=True), sources(NAMES))
        assert (again.done_now, again.manifest.fingerprint) == (0, expected.fingerprint)
        assert again.manifest.recipe_id == expected.recipe_id
    assert (again.manifest.sidecar, verify(str(out))) == (None, [])


def test_appended_and_retried_videos_get_what_the_sidecar_says(tmp_path: Path, sidecar: Sidecar) -> None:
    out, split = tmp_path / "set", SplitConfig(validation=("video-2.mp4",))
    errors = {"id-of-video-0.mp4/00001": "cpu_limit"}
    given = {"sidecar": sidecar, "split": split}
    build(video_job(out, **given), sources(NAMES[2:]))  # type: ignore[arg-type]
    failed = writing(FilterConfig(), errors)
    build(video_job(out, **given), sources(NAMES), failed)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipelines.failures.run_on_videos", lambda *_: writing(FilterConfig()))
        retry(RetryJob(shards=str(out), error_class="cpu_limit", tokenizer=TOKENIZER), lambda *_: None)
    fresh = tmp_path / "fresh"
    build(video_job(fresh, **given), sources(NAMES))  # type: ignore[arg-type]
    assert said(out) == said(fresh)
    assert ShardSet.open(str(out)).manifest.fingerprint == ShardSet.open(str(fresh)).manifest.fingerprint


def test_a_derived_set_keeps_what_is_said_of_its_clips_or_takes_another_sidecar(
    tmp_path: Path, sidecar: Sidecar
) -> None:
    base = tmp_path / "set"
    build(video_job(base, sidecar=sidecar), sources(NAMES))
    derive(DeriveJob(base=str(base), out=str(tmp_path / "same"), exclude=("video-1.mp4",)), lambda *_: None)
    kept = {clip_id: values for clip_id, values in said(base).items() if "video-1" not in clip_id}
    assert said(tmp_path / "same") == kept
    other = Sidecar.read(str(write(tmp_path / "other.csv", [{"source": "video-2.mp4", "label": "z"}])))
    job = DeriveJob(base=str(base), out=str(tmp_path / "other"), exclude=(), sidecar=other)
    derive(job, lambda *_: None)
    labels = {clip_id[:17]: values[0] for clip_id, values in said(job.out).items()}
    assert labels == {f"id-of-video-{k}.mp4": "z" if k == 2 else None for k in range(3)}
    assert verify(job.out) == []


def test_a_part_that_ends_at_infinity_has_no_end(tmp_path: Path) -> None:
    row = {"source": "a", "start_seconds": 2.0, "label": "x"}
    files = [write(tmp_path / name, [row | {"end_seconds": math.inf}]) for name in ("a.csv", "a.parquet")]
    files.append(write(tmp_path / "b.csv", [row]))
    assert len({Sidecar.read(str(path)).digest for path in files}) == 1


def test_whole_numbers_and_text_of_any_kind_and_length_are_taken_alike(tmp_path: Path) -> None:
    long, date = "x" * (3 << 20), "2026-01-02"
    labels, captions = ["1", "2", None], [long, date, "\u2028"]
    rows = zip("abc", labels, captions, strict=True)
    lines = [{"source": source, "label": label, "caption": caption} for source, label, caption in rows]
    given = [write(tmp_path / "text.csv", lines), write(tmp_path / "text.jsonl", lines)]
    lines[0]["label"] = 1  # type: ignore[assignment]
    given.append(write(tmp_path / "mixed.jsonl", lines))
    for number, kind in enumerate((pa.string_view(), pa.large_string(), pa.string())):
        texts = {"source": pa.array(list("abc"), kind), "caption": pa.array(captions, kind)}
        given.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({**texts, "label": pa.array([1, 2, None], pa.int32())}), given[-1])
    assert len({Sidecar.read(str(path)).digest for path in given}) == 1
    assert [row["label"] for row in Sidecar.read(str(given[-1])).rows.to_pylist()] == labels


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "source,label\n", "is no sidecar; give a file whose name ends in .parquet, .csv"),
        ("a.parquet", "source,label\n", "is no parquet file that can be read"),
        ("a.jsonl", '{"source": "a"\n', "is no jsonl file that can be read"),
        ("a.csv", "source,label\na,b,c\n", "is no csv file that can be read"),
        (
            "a.csv",
            "source,labels\na,b\n",
            "has a column 'labels', which means nothing here; drop or rename it: .* source",
        ),
        ("a.csv", "source,start_seconds\na,1\n", "needs source, .* and one of label, caption, action"),
        ("a.csv", "label,caption\na,b\n", "needs source, the name or URI of a video"),
        ("a.csv", "source,label\n,b\n", "row 1 of the sidecar .* names no source"),
        ("a.csv", "source,start_seconds,label\na,soon,b\n", "column start_seconds .* must hold numbers"),
        ("a.csv", "source,start_seconds,end_seconds,label\na,5,2,b\n", "row 1 .* goes from second 5 to 2"),
        ("a.csv", "source,action\na,left\n", "column action .* must hold lists of whole numbers"),
        ("a.csv", "source,action\na,[1.5]\n", "column action .* must hold lists of whole numbers"),
        ("a.csv", "source,label\na,b\na,c\n", "rows 1 and 2 .* give another label of the same part of a"),
        ("a.jsonl", '{"source": "a", "label": 1.5}\n', "column label .* must hold text: it has double"),
        ("a.jsonl", '{"source": "a", "label": true}\n', "column label .* must hold text: it has bool"),
        ("a.jsonl", '\n[{"source": "a"}]\n', "no jsonl file that can be read .line 2 is no object"),
        ("a.jsonl", '{"source": "a", "source": "b"}\n', "line 1: a name stands in it twice"),
        ("a.jsonl", '{"source": "a", "label": "\\ud800"}\n', "column label: .* surrogates not allowed"),
        ("a.jsonl", '{"source": "a", "action": 3}\n', "column action .* must hold lists of whole numbers"),
        ("a.jsonl", '{"source": "a", "action": [4000000000]}\n', "column action .* 32 bits"),
        ("a.jsonl", '{"source": "a", "action": [1, null]}\n', "row 1 .* has an action with a gap in it"),
        ("a.csv", f"source,action\na,{'[' * 100_000}\n", "column action .* maximum recursion depth"),
        (
            "a.jsonl",
            '{"source": "a", "start_seconds": "1", "label": "b"}\n',
            "must hold numbers: it has string",
        ),
    ],
)
def test_what_is_wrong_with_a_sidecar_is_one_sentence(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=sentence) as refusal:
        Sidecar.read(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_a_sidecar_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the sidecar .*nowhere.csv cannot be read"):
        Sidecar.read(str(tmp_path / "nowhere.csv"))
