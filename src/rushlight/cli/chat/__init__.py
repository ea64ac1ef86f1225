"""The two interfaces of `rushlight chat`: a terminal, and lines on standard input."""
