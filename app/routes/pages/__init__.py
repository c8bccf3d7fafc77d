"""The pages, one module each; a page's variables are a dataclass beside its view."""
