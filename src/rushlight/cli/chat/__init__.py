"""The two interfaces of `rushlight chat`: a terminal, and lines in a pipe."""
