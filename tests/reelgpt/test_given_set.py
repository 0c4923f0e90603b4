"""What is taken for a shard set, and what for a folder of videos."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ShardError, UsageError
from pipelines.building import claim
from reelgpt.given_set import given_set


@pytest.mark.parametrize("content", [[], {"videos": 3}, "words", {}])
def test_a_folder_of_videos_may_have_a_manifest_settings_and_spans_of_its_own(
    tmp_path: Path, content: Any
) -> None:
    for name in ("manifest.json", "config.json"):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "spans").mkdir()
    (tmp_path / "spans" / "a.mp4").write_bytes(b"")
    assert given_set([str(tmp_path)]) is None
    (tmp_path / "manifest.json").write_text("{")
    assert given_set([str(tmp_path)]) is None


@pytest.mark.parametrize("manifest", [None, "{", '{"format_version": 0}'])
def test_a_set_that_is_unsealed_damaged_or_of_another_format_is_told_so(
    tmp_path: Path, manifest: str | None
) -> None:
    (tmp_path / "config.json").write_text('{"format_version": 2}')
    (tmp_path / "spans").mkdir()
    (tmp_path / "spans" / "x.parquet").write_bytes(b"")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ShardError):
        given_set([str(tmp_path)])


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_an_output_with_settings_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="of something else; give an empty or a new folder"):
        claim.claim(str(tmp_path), {"format_version": 2, "kind": "frames"})
