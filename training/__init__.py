"""From shard sets to bundles: batches, objectives, the engine, checkpoints, the loop."""
