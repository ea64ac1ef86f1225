"""`python -m benchmarks.first_token PEER PATH DTYPE THREADS`: prints the first token of a fresh process, for timing."""

import sys

from benchmarks.peers import peer

if __name__ == "__main__":
    name, path, dtype, threads = sys.argv[1:]
    peer(name).first_token(path, dtype, int(threads))
