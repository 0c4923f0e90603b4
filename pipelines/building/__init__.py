"""The graph that makes a set: what is missing, the stages, the workers, the seal."""
