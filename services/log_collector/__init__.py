"""Takes containers' output to live readers and into object storage. See README.md."""
