"""Whether a set is what its manifest says, and what its sources give."""
