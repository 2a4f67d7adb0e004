"""Translation: the embedded English-German corpus, data preparation, checkpoint averaging and BLEU."""
