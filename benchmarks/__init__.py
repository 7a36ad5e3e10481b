"""fastssl beside its peers: one process tree, interleaved launch by launch, correct before timed."""
