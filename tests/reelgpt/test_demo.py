"""Where the demo may put what it makes; the journey itself is in end_to_end."""

from pathlib import Path

import pytest

from infra.errors import UsageError
from reelgpt.demo import Demo


@pytest.mark.parametrize("name", ["notes.txt", "report.html", "photos/a.jpg"])
def test_a_folder_that_holds_something_else_is_refused_and_stays_as_it_is(name: str) -> None:
    theirs = Path("mine", name)
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    Path("mine", "mlflow.db").touch()
    with pytest.raises(UsageError, match=f"mine holds something else already \\({name.partition('/')[0]}\\)"):
        Demo(out="mine").run()
    assert theirs.read_text() == "theirs"
    assert not Path("mine", "frames").exists()


def test_what_a_demo_left_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reelgpt.demo.PACKAGED_VIDEOS", {"no-such-package": ()})
    for name in ("frames/config.json", "report.html", ".DS_Store", "mlruns/meta.yaml"):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text("{}")
    with pytest.raises(UsageError, match="the demo's videos are in the package"):
        Demo(out="mine").run()
