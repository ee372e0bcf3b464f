"""Measure your own token sequences: lists of any lengths, at the lengths that all of them have."""

import longrope as lr

model, tokenizer = lr.load("tiny", dtype="float32")
text = "for name in names: print(name)\n"
sequences = tokenizer([text * 40, text * 60])["input_ids"]  # two lists of token ids of different lengths
results = lr.perplexity(model, sequences, lengths=[128, 256])
for result in results:
    print(f"{result.length} tokens: perplexity {result.perplexity:.2f} of {len(result.losses)} sequences")

assert results[1].perplexity < results[0].perplexity  # the text repeats itself
