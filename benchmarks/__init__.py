"""How fast, how small and how accurate lipfuse is; see README.md."""
