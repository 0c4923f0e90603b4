from pipelines.shards import ShardSet
from training.data import open_data
from training.engine.parameter_groups import parameter_groups
from training.objectives import Learner, build_objective
from training.recipes import get_recipe


def test_norms_biases_and_embeddings_do_not_decay(token_set: ShardSet, frame_set: ShardSet) -> None:
    for name, data in (("gpt_tiny", token_set), ("tokenizer_tiny", frame_set)):
        config = get_recipe(name)
        learner = Learner(build_objective(config, open_data(config, data.uri)))
        names = {parameter: name for name, parameter in learner.named_parameters()}
        decayed, spared = (
            {names[parameter] for parameter in group["params"]}
            for group in parameter_groups(learner, weight_decay=0.1)
        )
        assert len(decayed) + len(spared) == len(names)
        for kind in ("norm", "bias", "embedding"):
            assert not [name for name in decayed if kind in name]
        assert decayed == {
            name
            for name, parameter in learner.named_parameters()
            if parameter.ndim >= 2 and ".embedding." not in name
        }
        assert any("qkv.weight" in name or "conv" in name for name in decayed)
