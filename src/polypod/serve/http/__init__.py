"""HTTP/1.1 at the level of bytes: the client's side (`front`), the engines' side (`back`), and nothing of what is said over it."""
