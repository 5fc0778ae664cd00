"""The program of the processes that `encoding` starts; it is run by its path, and imports nothing of ours.

What it needs comes with the pickled tokenizer. It ends with its standard input.
"""

import os
import pickle
import sys


def main() -> None:
    """Encodes documents from standard input to standard output, both pickled, one at a time."""
    source = sys.stdin.buffer
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(good, value):
        pickle.dump((good, value), answers)
        answers.flush()

    try:
        sys.path[:], pickled = pickle.load(source)
        tokenizer = pickle.loads(pickled)
        import numpy as np
    except Exception as error:  # whatever the tokenizer's modules raise
        answer(False, repr(error))
        return
    answer(True, None)
    while True:
        try:
            document = pickle.load(source)
        except EOFError:
            return
        try:
            tokens = np.asarray([*tokenizer.encode(document, bos=True), tokenizer.eos_id])
        except ValueError as error:
            answer(False, str(error))
        else:
            answer(True, tokens)


if __name__ == "__main__":
    main()
