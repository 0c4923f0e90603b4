"""The report: one page that holds everything, tells what failed, and trusts no name that it prints."""

import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest

from infra.errors import UsageError
from pipelines.building import pace
from pipelines.building.pace import Devices, Meter
from pipelines.shards import ShardSet
from reelgpt import report_sections
from reelgpt.generate import Generate
from reelgpt.report import Report, mlflow_line
from reelgpt.report_sections import describe_data
from training.recipes import get_recipe

pytestmark = pytest.mark.slow


class Links(html.parser.HTMLParser):
    """Collects what a page would load, and the names of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.elements: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.loaded += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "poster")
        ]


def write_run(path: Path, recipe: str, bundle: str, evaluation: dict[str, float]) -> str:
    """A run directory as `reelgpt train` leaves it."""
    from infra import configs

    path.mkdir()
    (path / "config.json").write_text(
        json.dumps({"recipe": recipe, "config": configs.to_dict(get_recipe(recipe))})
    )
    lines = [
        {"step": step, "loss": 1 / step} | ({"val_loss": 2 / step} if step % 4 == 0 else {})
        for step in range(1, 9)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "result.json").write_text(json.dumps({"steps_done": 8, "seconds_per_step": 0.25} | evaluation))
    shutil.copytree(bundle, path / "model")
    return str(path)


@pytest.fixture
def page(tmp_path: Path, frame_set: str, tokenizer_bundle: str, gpt_bundle: str, video: str) -> str:
    """The report of a small journey."""
    tokenizer_result = {"val_psnr": 21.5, "val_psnr_mean_colour": 17.25}
    gpt_result = {"val_loss": 3.125, "val_loss_unigram": 4.5, "val_loss_bigram": 4.25}
    runs = (
        write_run(tmp_path / "tokenizer", "tokenizer_tiny", tokenizer_bundle, tokenizer_result),
        write_run(tmp_path / "gpt", "gpt_tiny", gpt_bundle, gpt_result),
    )
    Generate(model=gpt_bundle, input=video, out="next.mp4").run()
    outcome = Report(out="report.html", frames=frame_set, runs=runs, generated=("next.mp4",)).run()
    assert outcome.summary["bytes"] == Path("report.html").stat().st_size
    return Path("report.html").read_text()


def test_the_page_loads_nothing_from_elsewhere_and_holds_three_videos_and_their_pictures(page: str) -> None:
    links = Links()
    links.feed(page)
    loaded = [link for link in links.loaded if not link.startswith("#")]
    assert all(link.startswith("data:") for link in loaded)
    kinds = sorted(link.split(";")[0] for link in loaded)
    assert kinds == ["data:image/png"] * 2 + ["data:video/mp4"] * 3
    assert "script" not in links.elements
    assert "link" not in links.elements
    assert not re.search(r"url\(\s*[\"']?(?!#|data:)", page)


def test_the_page_shows_numbers_beside_their_baselines(page: str) -> None:
    for number in ("21.50", "17.25", "3.12", "4.50", "4.25"):
        assert number in page
    headline = page.partition("<h2>")[0]
    assert all(f"<b>{number}</b>" in headline for number in ("21.50", "3.12", "4.50", "4.25"))


def test_the_page_names_what_was_left_out_and_escapes_names(page: str) -> None:
    assert "truncated" in page
    assert "the file was cut off" in page
    assert "&lt;i&gt;broken&lt;/i&gt;.mp4" in page
    assert "<i>" not in page


def test_the_page_has_the_line_that_opens_mlflow(page: str) -> None:
    assert mlflow_line().split()[-1] in page
    assert mlflow_line().endswith("mlflow.db")


def test_a_server_of_mlflow_is_opened_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert mlflow_line() == "open http://tracking.example:5000"


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_the_page_tells_no_password(scheme: str, frame_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:hidden-word@tracking.example/db")
    Report(out="report.html", frames=frame_set).run()
    assert "tracking.example" in Path("report.html").read_text()
    assert "hidden-word" not in Path("report.html").read_text()


def test_every_span_that_failed_and_every_filter_that_rejected_has_a_row(frame_set: str) -> None:
    facts = describe_data(ShardSet.open(frame_set))
    assert [row["class"] for row in facts["rejects"]] == ["truncated"]
    assert {row["source"]: row["clips"] for row in facts["sources"]} == {
        "walk.mp4": 2,
        "held-out.mp4": 1,
        "<i>broken</i>.mp4": 0,
    }


def test_a_table_that_is_cut_says_how_many_rows_are_left_out(
    frame_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Report(out="whole.html", frames=frame_set).run()
    assert "not listed" not in Path("whole.html").read_text()
    monkeypatch.setattr(report_sections, "MOST_ROWS", 1)
    Report(out="cut.html", frames=frame_set).run()
    assert "2 more are not listed here" in Path("cut.html").read_text()
    assert "walk.mp4, and 2 more" in Path("cut.html").read_text()


def test_a_report_of_frames_alone_is_a_page_too(frame_set: str) -> None:
    Report(out="report.html", frames=frame_set).run()
    assert "held-out.mp4" in Path("report.html").read_text()


def test_the_page_tells_how_fast_a_set_was_made_and_what_kept_it(frame_set: str) -> None:
    Report(out="before.html", frames=frame_set).run()
    assert "How fast" not in Path("before.html").read_text()
    meter = Meter()
    pace.record(frame_set, meter.pace(Devices(cores=2), seconds_per_clip=None, fps=8.0))
    Report(out="after.html", frames=frame_set).run()
    assert "How fast" in Path("after.html").read_text()
    assert "of what 2 cores can do" in Path("after.html").read_text()


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="give --frames"):
        Report(out="report.html").run()
    with pytest.raises(UsageError, match="no run directory"):
        Report(out="report.html", runs=("nowhere",)).run()
    assert not Path("report.html").exists()


def test_a_video_that_generate_did_not_make_is_refused(video: str) -> None:
    with pytest.raises(UsageError, match=r"`reelgpt generate` did not make .*: there is no .*\.json"):
        Report(out="report.html", generated=(video,)).run()
    assert not Path("report.html").exists()
