"""`python -m benchmarks.first_token PEER PATH FORMAT THREADS`: prints the first token of a fresh process."""

import sys

from benchmarks.peers import peer

if __name__ == "__main__":
    name, path, form, threads = sys.argv[1:]
    peer(name).first_token(path, form, int(threads))
