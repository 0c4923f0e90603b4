import pytest

from infra.errors import ConfigError, UsageError
from pipelines.shards import ShardSet
from reelgpt.evaluate import Evaluate
from reelgpt.main import main
from reelgpt.train import Train
from training.config import RunConfig
from training.configs.objective import PredictConfig
from training.launching.launch import train
from training.recipes import get_recipe

PLACES = ("--data", "tokens", "--run-dir", "run")
DONE = {"recipe": "gpt_tiny", "steps_done": 1, "was_finished": False}


@pytest.mark.parametrize(
    "words",
    [
        ("gpt_tiny", *PLACES, "--objective.z-weight", "0.5"),
        (*PLACES, "gpt_tiny", "--objective.z-weight", "0.5"),
        (*PLACES, "--objective.z-weight", "0.5", "gpt_tiny"),
    ],
)
def test_wherever_the_recipe_stands_the_settings_are_its_own(words: tuple[str, ...]) -> None:
    config = Train.parse(words).config
    assert config is not None
    assert config.name == "gpt_tiny"
    assert isinstance(config.objective, PredictConfig)
    assert config.objective.z_weight == 0.5


def test_a_variant_may_be_called_as_another_recipe() -> None:
    command = Train.parse(("--name", "gpt_tiny", *PLACES, "tokenizer_tiny"))
    assert command.config is not None
    assert command.config.objective == get_recipe("tokenizer_tiny").objective


def test_none_unsets_what_a_recipe_sets() -> None:
    places = ("--data", "d", "--run-dir", "r")
    train = Train.parse(("gpt_tiny", *places, "--objective.task=generate", "--objective.prefix-frames=None"))
    assert train.config is not None
    assert isinstance(train.config.objective, PredictConfig)
    assert train.config.objective.prefix_frames is None
    with pytest.raises(UsageError, match=r"generate has no setting 'prefix_frames' .*leave it at None"):
        Train.parse(("gpt_tiny", *places, "--objective.task=generate"))


def test_a_launcher_says_how_many_workers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe says two, among whom such a batch could not be shared."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "5")
    words = "gpt_tiny", "--data", "tokens", "--run-dir", "run"
    options = Train.parse([*words, "--batches.global-batch=10", "--batches.micro-batch=2"])
    assert options.config is not None
    assert options.config.num_workers == 5


def test_an_unknown_recipe_after_its_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no recipe 'gpt_tinny'; did you mean 'gpt_tiny'"):
        Train.parse((*PLACES, "gpt_tinny"))


def test_a_run_that_is_not_to_be_registered_is_said_so_in_one_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: list[RunConfig] = []
    monkeypatch.setattr("reelgpt.train.train", lambda config, **_: configs.append(config) or DONE)
    words = "train", "gpt_tiny", *PLACES
    for options in (["--no-register"], ["--register-as", "None"], ["--register-as", "mine"]):
        assert main([*words, *options]) == 0
    assert [config.register_as for config in configs] == [None, None, "mine"]
    capsys.readouterr()
    for options in (["--register-as", "none"], ["--register-as", "mine", "--no-register"]):
        assert main([*words, *options]) == 2
        said = capsys.readouterr().err
        assert "--no-register" in said
        assert len(said.splitlines()) == 1
    assert len(configs) == 3


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_a_password_is_not_handed_to_ray(
    variable: str, token_set: ShardSet, run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://ann:secret@mlflow.example")
    with pytest.raises(UsageError, match=f"{variable} has a password in it, which Ray records") as refused:
        train(get_recipe("gpt_tiny"), data=token_set.uri, run_dir=run_dir, launcher="ray")
    assert "secret" not in str(refused.value)


def test_judging_on_no_clip_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-clips -3 looks at nothing"):
        Evaluate(model="model", data="tokens", max_clips=-3).run()
