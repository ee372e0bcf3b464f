"""Search for factors: spaces, methods, journal and the search loop. Imports no torch."""

NEEDLE_WEIGHT = 0.2  # perplexity alone gives factors that forget where facts are in the text (docs/search.md)
JOURNAL = "search-0.jsonl"  # of the first seed, with which the folder of a search begins
