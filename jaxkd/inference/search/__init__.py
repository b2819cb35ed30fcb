"""From frames to words: greedy, prefix beam, lexicon, n-gram."""
