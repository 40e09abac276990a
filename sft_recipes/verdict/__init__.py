"""What the numbers of a run say: which checkpoint is the best, where it overfits, what it forgot. Plain data in, sentences out."""
