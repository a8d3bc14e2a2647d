"""Token ids as the original Colab notebook made them, from the real gluonnlp.

Enters: a SentencePiece model, a JSON list of texts, max_len. Leaves: an npz of int32 arrays ids
(texts, max_len), valid_length (texts,) and segment_ids (texts, max_len). Runs in .venv-original
only (build.sh makes it): mxnet and gluonnlp import with no later numpy.

    .venv-original/bin/python tests/original/tokenize_texts.py SPIECE TEXTS.json OUT.npz MAXLEN
"""

import json
import sys
import time

import numpy as np
import sentencepiece


def encode_without_sampling(processor, text, nbest_size=None, alpha=None):
    # gluonnlp asks for nbest_size 0, "no sampling", which every wheel for Python 3.11 rejects.
    if nbest_size not in (0, 1):
        raise ValueError(f"nbest_size must be 0 or 1 (no sampling), got {nbest_size}")
    return processor.encode(text, out_type=str)


def main(spiece, texts_json, out_npz, max_len):
    sentencepiece.SentencePieceProcessor.SampleEncodeAsPieces = encode_without_sampling
    import gluonnlp

    vocab = gluonnlp.vocab.BERTVocab.from_sentencepiece(spiece, padding_token="[PAD]")
    tokenizer = gluonnlp.data.BERTSPTokenizer(spiece, vocab, lower=False)
    transform = gluonnlp.data.BERTSentenceTransform(
        tokenizer, max_seq_length=max_len, pad=True, pair=False
    )
    with open(texts_json, encoding="utf-8") as file:
        texts = json.load(file)
    ids = np.empty((len(texts), max_len), np.int32)
    valid_length = np.empty(len(texts), np.int32)
    segment_ids = np.empty((len(texts), max_len), np.int32)
    started = time.perf_counter()
    for row, text in enumerate(texts):
        ids[row], valid_length[row], segment_ids[row] = transform([text])
    print(time.perf_counter() - started)  # seconds, for benchmarks/input.py
    np.savez_compressed(out_npz, ids=ids, valid_length=valid_length, segment_ids=segment_ids)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: tokenize_texts.py SPIECE TEXTS.json OUT.npz MAXLEN")
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
