"""The model as DeepSpeed steps it, saves it and loads it, at any ZeRO stage and world size."""
