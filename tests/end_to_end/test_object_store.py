"""The same commands on s3:// URIs, against a real S3 server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.media import make_bad_files, make_video
from tests.object_store import ObjectStore, object_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SETTINGS = ("--sampling.span-seconds", "1", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4")
OVER_BUDGET = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as started:
        yield started


def reelgpt(*args: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reelgpt", *args, "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **environment},
    )


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_bucket_of_videos_becomes_the_same_shard_set_as_a_folder_of_them(
    store: ObjectStore, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    make_video(videos / "a.mp4")
    make_video(videos / "b.webm")
    make_bad_files(videos)
    bucket = s3fs.S3FileSystem(
        key=store.environment["AWS_ACCESS_KEY_ID"],
        secret=store.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=store.environment["AWS_ENDPOINT_URL"],
    )
    bucket.mkdir("bucket")
    bucket.put(f"{videos}/", "bucket/videos/", recursive=True)
    here = reelgpt("extract", str(videos), "--out", str(tmp_path / "out"), *SETTINGS, environment={})
    args = ("extract", "s3://bucket/videos", "--out", "s3://bucket/frames", *SETTINGS)
    there = reelgpt(*args, environment=store.environment)
    assert here.returncode == there.returncode == OVER_BUDGET, there.stderr
    assert summary(there)["fingerprint"] == summary(here)["fingerprint"]
    again = summary(reelgpt(*args, environment=store.environment))
    assert (again["done_now"], again["fingerprint"]) == (0, summary(here)["fingerprint"])
    assert summary(reelgpt("verify", "s3://bucket/frames", environment=store.environment))["whole"]


@pytest.mark.parametrize(
    "change", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}]
)
def test_wrong_credentials_or_endpoints_are_one_sentence(store: ObjectStore, change: dict[str, str]) -> None:
    environment = store.environment | change | {"AWS_MAX_ATTEMPTS": "1"}
    done = reelgpt("extract", "s3://bucket/videos", "--out", "s3://bucket/other", environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: s3://bucket/videos")
    assert "check" in done.stderr
    assert "Traceback" not in done.stderr
